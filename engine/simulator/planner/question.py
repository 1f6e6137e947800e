"""A capacity question: models, hardware, traffic and a service level in, a plan out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tokenmux.core.errors import ConfigError
from tokenmux.core.facts import HostFacts, ModelFacts, ModelId
from tokenmux.core.request import ServiceLevel
from tokenmux.scheduler.memory.capacity import check_model, check_request
from tokenmux.simulator.planner.capacity_plan import BASELINES, OURS, UNSHARED, CapacityPlan
from tokenmux.simulator.planner.named_models import parse_models
from tokenmux.simulator.planner.plan_search import PlanSearch, plan_here
from tokenmux.simulator.planner.simulated_job import World
from tokenmux.simulator.scenario import Hardware, Market
from tokenmux.simulator.step_file import fit_for
from tokenmux.workload.generate import traffic
from tokenmux.workload.shape import clipped
from tokenmux.workload.trace import Trace, arrivals, read_trace

MAX_REQUESTS = 5_000_000
"""Limit of generated traffic. This many requests take hours and one or two gigabytes."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. `models` are written as `named_models.py` says.

    Without a `trace`, every model gets Poisson traffic at its own rate, or at `rate_rps`.
    """

    models: Sequence[str]
    hardware: Hardware = field(default_factory=Hardware)
    trace: Path | Trace | None = None
    rate_rps: float = 0.1
    duration_s: float = 300.0
    ttft_s: float | None = None
    """For all requests. None: as the trace says, otherwise 10 s."""
    tpot_s: float | None = None
    goal: float = 0.99
    compare: bool = True
    """Plan for the other policies as well."""
    seed: int = 0
    prefix_cache: bool = False
    """Requests share KV where the trace says that their prompts begin alike."""
    known: Mapping[ModelId, ModelFacts] = field(default_factory=dict)
    """Models whose facts come from elsewhere, such as a running server."""


def answer_question(
    question: Question,
    carry_out: Callable[[PlanSearch], None] = plan_here,
    note: Callable[[str], None] = lambda text: None,
    *,
    with_spans: bool = False,
) -> CapacityPlan:
    """The plan. `carry_out` simulates until the search is complete; `with_spans` as in `PlanSearch`.

    `note` is called with what a reader of the plan should know. Raises ConfigError, NotFound or DoesNotFit.
    """
    world = world_of(question, note)
    unshared = (UNSHARED,) if question.prefix_cache else ()
    policies = (OURS, *unshared, *(BASELINES if question.compare else ()))
    search = PlanSearch(world, question.goal, policies, with_spans)
    carry_out(search)
    return search.plan()


def world_of(question: Question, note: Callable[[str], None] = lambda text: None) -> World:
    """The question's models and traffic, checked. `note` is called with what a reader of the plan should
    know.

    Raises ConfigError, NotFound or DoesNotFit.
    """
    asked = parse_models(question.models, question.known)
    market = asked.market
    if question.trace is None:
        rates = {str(model): asked.rates.get(model, question.rate_rps) for model in market.facts}
        expected = sum(rates.values()) * question.duration_s
        if expected > MAX_REQUESTS:
            raise ConfigError(
                f"about {expected:.3g} requests within {question.duration_s:g} s are more than can "
                f"be simulated ({MAX_REQUESTS}): "
                "lower --rate or --duration"
            )
        lines = traffic(np.random.default_rng(question.seed), rates, question.duration_s)
        if not lines:
            raise ConfigError(
                f"no request comes within {question.duration_s:g} s at these rates: raise --rate or "
                "--duration"
            )
    else:
        lines = read_trace(question.trace) if isinstance(question.trace, Path) else question.trace
        if not lines:
            raise ConfigError("the trace has no requests: there is nothing to plan for")
        _check_names(lines, market)
    fitting = [clipped([line], market.max_context[ModelId(line.model)])[0] for line in lines]
    n_cut = sum(whole != cut for whole, cut in zip(lines, fitting, strict=True))
    if n_cut and question.trace is not None:
        note(
            f"{n_cut} of {len(lines)} requests are longer than their model's context, and planned as "
            "cut to it"
        )
    start_s = fitting[0].arrival_s
    moved = [
        replace(
            line,
            arrival_s=line.arrival_s - start_s,
            ttft_s=line.ttft_s if question.ttft_s is None else question.ttft_s,
            tpot_s=line.tpot_s if question.tpot_s is None else question.tpot_s,
        )
        for line in fitting
    ]
    _check_sizes(moved, market, question.hardware)
    _check_steps(market, question.hardware, note)
    cell = _cell_tokens(question, moved, market) if question.prefix_cache else None
    coming = arrivals(moved, market.max_context, ServiceLevel(), cell_tokens=cell)
    return World(market, coming, question.hardware)


def _cell_tokens(question: Question, lines: Trace, market: Market) -> int:
    """The cells in which prompts share KV. Raises ConfigError if none of them says what it begins with."""
    if not any(line.hash_ids for line in lines):
        raise ConfigError(
            "no request says what its prompt begins with, so that a prefix cache has nothing to share: plan "
            "for a trace with hash_ids, or leave out --prefix-cache"
        )
    return question.hardware.instance(market).cell_tokens


def _check_names(lines: Trace, market: Market) -> None:
    unknown = sorted({line.model for line in lines} - set(market.facts))
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ConfigError(
            f"the trace has models that are not in the plan: {', '.join(unknown[:5])}{more}; name each as "
            f"{unknown[0]}=ARCHITECTURE, or {unknown[0]}=FOLDER with its config.json"
        )


def _check_steps(market: Market, hardware: Hardware, note: Callable[[str], None]) -> None:
    """Say whose step times are used. Raises ConfigError if no model has one of those given."""
    if not hardware.steps:
        return
    given = [m for m in market.facts if fit_for(hardware.steps, m, market.architectures[m])]
    if not given:
        kinds = ", ".join(sorted(set(market.architectures.values()))[:5])
        raise ConfigError(
            "the file of step times has no row for a model of this plan: name one, an architecture "
            f"({kinds}), or * for all"
        )
    if len(given) < len(market.facts):
        note(
            f"{len(market.facts) - len(given)} of {len(market.facts)} models have no row in the file of step "
            "times: measured ones are used for them"
        )


def _check_sizes(lines: Trace, market: Market, hardware: Hardware) -> None:
    """Raises DoesNotFit for a model that no instance can hold with its longest request."""
    device, host = hardware.instance(market), HostFacts(hardware.host_cache_bytes, hardware.disk_bytes_per_s)
    longest: dict[str, int] = {}
    for line in lines:
        longest[line.model] = max(longest.get(line.model, 0), line.input_tokens + line.output_tokens)
    for model, n_tokens in longest.items():
        facts = market.facts[ModelId(model)]
        check_model(device, host, facts)
        check_request(device, facts, n_tokens)
