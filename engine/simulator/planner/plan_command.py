"""`tokenmux plan`: models, hardware, traffic and a service level in; a table, JSON or an HTML page out.

The command line's composition root mounts `plan_command`; the parsing of options, and in how many processes is simulated, is its own.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tokenmux.core.errors import ConfigError
from tokenmux.core.facts import HostFacts, ModelFacts, ModelId
from tokenmux.core.request import ServiceLevel
from tokenmux.scheduler.memory.capacity import check_model, check_request
from tokenmux.scheduler.metrics.timeline import chrome_trace
from tokenmux.simulator.planner.named_models import parse_market, parse_models
from tokenmux.simulator.planner.plan_report import html_report
from tokenmux.simulator.planner.planner import BASELINES, OURS, CapacityPlan, PlanSearch, World, plan_here
from tokenmux.simulator.scenario import Hardware, Market
from tokenmux.workload.generate import traffic
from tokenmux.workload.shape import clipped
from tokenmux.workload.trace import Trace, arrivals, read_trace

__all__ = ["Output", "Question", "parse_market", "plan_command", "print_plan"]


MAX_REQUESTS = 5_000_000
"""Of generated traffic: a gigabyte or two, and hours."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. `models` as in `tokenmux.simulator.planner.named_models`; without a trace every model gets Poisson traffic of its rate, or `rate_rps`."""

    models: Sequence[str]
    hardware: Hardware = field(default_factory=Hardware)
    trace: Path | Trace | None = None
    rate_rps: float = 0.1
    duration_s: float = 300.0
    ttft_s: float | None = None
    """For all requests; None: as the trace says, or 10 s."""
    tpot_s: float | None = None
    goal: float = 0.99
    compare: bool = True
    seed: int = 0
    known: Mapping[ModelId, ModelFacts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Output:
    """Where the answer goes; tables to stdout, unless as JSON."""

    as_json: bool = False
    html: Path | None = None
    chrome: Path | None = None
    with_cost: bool = False
    dollars_per_hour: float | None = None


def plan_command(
    question: Question,
    output: Output = Output(),
    carry_out: Callable[[PlanSearch], None] = plan_here,
    note: Callable[[str], None] = lambda text: None,
) -> CapacityPlan:
    """Plan and print. `carry_out` simulates until the planning is complete; `note` is told what a reader of the plan should know.

    Raises ConfigError, NotFound or DoesNotFit for what is not understood or can never be.
    """
    world = world_of(question, note)
    policies = (OURS, *BASELINES) if question.compare else (OURS,)
    planning = PlanSearch(world, question.goal, policies, with_spans=bool(output.html or output.chrome))
    carry_out(planning)
    plan = planning.plan()
    price = output.dollars_per_hour
    if output.html is not None:
        _write(output.html, html_report(plan, output.with_cost, price))
    if output.chrome is not None:
        _write(output.chrome, chrome_trace(plan.spans))
    if output.as_json:
        print(json.dumps(plan.as_dict(output.with_cost, price)))
    else:
        print_plan(plan, Console(), output.with_cost, price)
    return plan


def world_of(question: Question, note: Callable[[str], None] = lambda text: None) -> World:
    """The question's models and traffic, checked. Raises as `plan_command`."""
    asked = parse_models(question.models, question.known)
    market = asked.market
    if question.trace is None:
        rates = {str(model): asked.rates.get(model, question.rate_rps) for model in market.facts}
        expected = sum(rates.values()) * question.duration_s
        if expected > MAX_REQUESTS:
            raise ConfigError(
                f"about {expected:.3g} requests within {question.duration_s:g} s are more than can be simulated ({MAX_REQUESTS}): "
                "lower --rate or --duration"
            )
        lines = traffic(np.random.default_rng(question.seed), rates, question.duration_s)
        if not lines:
            raise ConfigError(
                f"no request comes within {question.duration_s:g} s at these rates: raise --rate or --duration"
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
            f"{n_cut} of {len(lines)} requests are longer than their model's context, and planned as cut to it"
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
    return World(market, arrivals(moved, market.max_context, ServiceLevel()), question.hardware)


def _check_names(lines: Trace, market: Market) -> None:
    unknown = sorted({line.model for line in lines} - set(market.facts))
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ConfigError(
            f"the trace has models that are not in the plan: {', '.join(unknown[:5])}{more}; name each as "
            f"{unknown[0]}=ARCHITECTURE, or {unknown[0]}=FOLDER with its config.json"
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


def print_plan(
    plan: CapacityPlan, console: Console, with_cost: bool = False, dollars_per_hour: float | None = None
) -> None:
    """The plan as tables for people, 80 columns wide."""
    console.print(
        f"{plan.n_models} models, {plan.n_requests} requests in {plan.duration_s:.0f} s; "
        f"{plan.goal:.1%} of all tokens have to be on time.",
        highlight=False,
    )
    titles = ("policy", plan.hardware.gpu, "slack saves", "limited by")
    answer = _table("Fewest devices", *titles, *(("$/M tokens", "Wh/M tokens") if with_cost else ()))
    for policy in plan.fewest:
        devices, saved = plan.devices(policy), plan.saved_share(policy)
        cost, energy = (
            plan.dollars_per_million_tokens(policy, dollars_per_hour),
            plan.watt_hours_per_million_tokens(policy),
        )
        answer.add_row(
            policy,
            "too many" if devices is None else str(devices),
            "" if saved is None or policy == OURS else f"{saved:.0%}",
            plan.limit(policy),
            *(("" if value is None else f"{value:.2f}" for value in (cost, energy)) if with_cost else ()),
        )
    console.print(answer)
    around = _table(
        "One device less and one more", "policy", plan.hardware.gpu, "tokens", "requests", "TTFT p50", "p99 s", "compute", "copies", "disk"
    )  # fmt: skip
    for policy in plan.fewest:
        for point in plan.around(policy):
            s = point.summary
            around.add_row(
                policy if point.n_instances != plan.fewest[policy] else f"[bold]{policy}[/bold]",
                str(point.n_instances * plan.hardware.n_devices),
                *(f"{share:.1%}" for share in (s.tokens_on_time, s.requests_on_time)),
                *(f"{seconds:.2f}" for seconds in (s.ttft_p50_s, s.ttft_p99_s)),
                *(f"{share:.0%}" for share in (point.compute_busy, point.copy_in_busy, point.fetch_busy)),
            )
    console.print(around)
    console.print(
        "tokens, requests: share on time. compute, copies, disk: share of the time busy.",
        style="dim",
        highlight=False,
    )
    relieved = {policy: shares for policy, shares in plan.relieved.items() if shares}
    if relieved:
        resources = list(next(iter(relieved.values())))
        twice = _table("Tokens on time one device short, with twice the", "policy", *resources)
        for policy, shares in relieved.items():
            twice.add_row(policy, *(f"{shares[name]:.1%}" for name in resources))
        console.print(twice)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=None,
        header_style="dim",
        pad_edge=False,
    )
    for column in columns:
        is_text = column in ("policy", "limited by")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=column != "limited by")
    return table


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
