"""`tokenmux plan`: models, hardware, traffic and a service level in; a table, JSON or an HTML page out.

The command line's composition root mounts `plan_command`; the parsing of options is its own.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tokenmux.engine.core.errors import ConfigError
from tokenmux.engine.core.facts import ModelFacts, ModelId
from tokenmux.engine.core.request import ServiceLevel
from tokenmux.engine.sim.catalogue import architecture, measured_as
from tokenmux.engine.sim.plan_report import html_report
from tokenmux.engine.sim.planner import BASELINES, CapacityPlan, plan_capacity
from tokenmux.engine.sim.scenario import Hardware, Market
from tokenmux.engine.workload.generate import traffic
from tokenmux.engine.workload.shape import clipped
from tokenmux.engine.workload.trace import Trace, arrivals, read_trace


def plan_command(
    models: Sequence[str],
    hardware: Hardware,
    trace: Path | Trace | None = None,
    rate_rps: float = 0.1,
    duration_s: float = 300.0,
    service: ServiceLevel | None = None,
    goal: float = 0.99,
    compare: bool = True,
    seed: int = 0,
    known: Mapping[ModelId, ModelFacts] | None = None,
    as_json: bool = False,
    html: Path | None = None,
) -> CapacityPlan:
    """Plan and print.

    `models` are `NAME=ARCHITECTURE`, `ARCHITECTURE` or `COUNT*ARCHITECTURE`; `known` are models whose facts come from elsewhere (a config.json, a
    running server). Without a trace every model gets Poisson traffic of `rate_rps`. Raises ConfigError or NotFound for what is not understood.
    """
    market = parse_market(models, known or {})
    if trace is None:
        rates = dict.fromkeys(map(str, market.facts), rate_rps)
        lines = clipped(
            traffic(np.random.default_rng(seed), rates, duration_s), min(market.max_context.values())
        )
    else:
        lines = read_trace(trace) if isinstance(trace, Path) else trace
        unknown = sorted({line.model for line in lines} - set(market.facts))
        if unknown:
            raise ConfigError(f"the trace has models that are not in the plan: {', '.join(unknown[:5])}")
    console = Console(stderr=True)
    with console.status("planning") as status:
        plan = plan_capacity(
            market,
            arrivals(lines, market.max_context, service),
            hardware,
            goal,
            ("slack", *BASELINES) if compare else ("slack",),
            on_progress=lambda policy, n: status.update(f"simulating {policy} on {n} instances"),
        )
    if html:
        html.write_text(html_report(plan), encoding="utf-8")
    if as_json:
        print(json.dumps(plan.as_dict()))
    else:
        print_plan(plan, Console())
    return plan


def parse_market(models: Sequence[str], known: Mapping[ModelId, ModelFacts]) -> Market:
    """The models to plan for, by name."""
    facts = dict(known)
    kinds = dict.fromkeys(known, "")
    for entry in models:
        count, star, rest = entry.partition("*")
        name, equals, kind = entry.partition("=")
        if star and count.isdigit():
            named = {f"{rest}-{number}": rest for number in range(int(count))}
        else:
            named = {name: kind if equals else name}
        for model, kind_name in named.items():
            made = architecture(kind_name)
            facts[ModelId(model)] = made.facts(model)
            kinds[ModelId(model)] = measured_as(made.name)
    if not facts:
        raise ConfigError("name at least one model to plan for")
    return Market(facts, kinds)


def print_plan(plan: CapacityPlan, console: Console) -> None:
    """The plan as tables for people."""
    fewest = Table(
        title=f"Fewest {plan.hardware.gpu} with {plan.goal:.1%} of tokens on time", title_justify="left"
    )
    for column in ("policy", "devices", "saved by slack"):
        fewest.add_column(column, justify="left" if column == "policy" else "right")
    for policy in plan.fewest:
        devices, saved = plan.devices(policy), plan.saved_share(policy)
        fewest.add_row(
            policy,
            "more than tried" if devices is None else str(devices),
            "" if saved is None or policy == "slack" else f"{saved:.0%}",
        )
    console.print(fewest)
    around = Table(title="slack on more and on fewer", title_justify="left")
    for column in (
        "instances",
        "tokens on time",
        "requests",
        "TTFT p50 s",
        "TTFT p99 s",
        "compute",
        "copy-in",
        "limit",
    ):
        around.add_column(column, justify="left" if column == "limit" else "right")
    for p in plan.points:
        if p.policy == "slack":
            s = p.summary
            shares = [f"{share:.3f}" for share in (s.tokens_on_time, s.requests_on_time)]
            times = [f"{seconds:.2f}" for seconds in (s.ttft_p50_s, s.ttft_p99_s)]
            busy = [f"{share:.2f}" for share in (p.compute_busy, p.copy_in_busy)]
            around.add_row(str(p.n_instances), *shares, *times, *busy, p.limit)
    console.print(around)
    cost, energy = plan.dollars_per_million_tokens(), plan.watt_hours_per_million_tokens()
    if cost is not None and energy is not None:
        console.print(f"about ${cost:.2f} and {energy:.0f} Wh per million tokens")
