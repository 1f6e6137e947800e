"""Two weeks of a model market: every client of ServeGen's m-large as a model of its own, but for the popular
ones, which have devices of their own anyway.

Most of its models are silent nearly always and come in bursts. A fixed pool is as large as the busiest ten
minutes need, which it would have to know before; an elastic one follows a causal forecast with a margin from
the forecast's own errors so far (`tokenmux.simulator.forecast`), and pays for devices that warm up or drain.
They are compared with a device for each model, with devices for each model's own peak, and with request-level
autoscaling. Then batch requests use what the fixed pool leaves idle.

The first week is the one that the targets speak of, and its elastic pool begins without a past. The second,
whose pool knows the first, has an hour that asks for seventeen times the usual number of devices.

The published deployment that this is likened to went from 1,192 to 213 GPUs. Alike: the shape of its demand
(many models, rarely used) and the base, which reserves devices for each model. Not alike: here clients stand
for models, step times and copies are simulated, and popular models are left out.

    TOKENMUX_DATA=... python -m benchmarks.market [--quick] [--second-week]
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from textwrap import fill

import numpy as np

from benchmarks.market_pools import (
    Served,
    Sizes,
    calibrate,
    elastic_pool,
    fixed_pool,
    instances_for_peaks,
    request_level_instances,
    serve,
)
from benchmarks.market_week import Week, generated_week, servegen_week
from benchmarks.plots import bars, series
from benchmarks.report import Target, finish, table
from benchmarks.workloads import data_folder, quick
from tokenmux.core.plan import Channel
from tokenmux.core.request import RequestId, ServiceLevel
from tokenmux.scheduler.metrics.summary import summarise
from tokenmux.simulator.forecast import error_on
from tokenmux.simulator.scenario import Outcome
from tokenmux.workload.generate import traffic
from tokenmux.workload.trace import Arrival, arrivals

TARGETS = {
    "device_hours_saved_elastic": Target(
        "against a device for each model; expected 85 to 90%", at_least=0.85
    ),
    "tokens_on_time_week": Target("of the elastic pool", at_least=0.99),
    "gpus_saved_share": Target("the paper's deployment saved 82% of its GPUs", at_least=0.82),
    "batch_interactive_lost_points": Target("other classes stay unchanged", at_most=0.1),
}
WEEK = 168
"""Hours."""
FIXED, ELASTIC = "fixed pool", "elastic pool"
BATCH = ServiceLevel(600.0, 2.0)


def measure(week: Week, hours: Sequence[int], simulated: Sequence[int], suffix: str) -> dict[str, float]:
    """Serve these hours with all pools, print and plot what comes of it, and return the figures."""
    parts = week.parts
    indices = range(len(parts))
    pools = {
        FIXED: fixed_pool(week, hours),
        ELASTIC: elastic_pool(week, hours),
    }
    served = dict(zip(pools, serve(week, pools.values(), hours, simulated), strict=True))
    n_base = sum(part.n_devices * len(part.levels) for part in parts)
    peaks = sum(parts[i].n_devices * instances_for_peaks(week, i, hours) for i in indices)
    by_request = sum(parts[i].n_devices * request_level_instances(week, i, h) for i in indices for h in hours)
    spent = {
        "a device for each model": float(n_base * len(hours)),
        "each model's own peak": float(peaks * len(hours)),
        "request-level, cold starts": by_request,
        **{name: pool.device_hours(parts) for name, pool in pools.items()},
    }
    base = spent["a device for each model"]
    print_week(
        f"hours {hours[0]} to {hours[-1]}, {week.simulated_s:.0f} s simulated of {len(simulated)}",
        spent,
        served,
    )
    needed = [sum(parts[i].n_devices * week.needed(i, hour) for i in indices) for hour in hours]
    plot_week(week, hours, needed, pools, spent, suffix)
    error = error_on(needed)
    n_fixed = pools[FIXED].devices(parts, 0)
    metrics = {
        "gpus_fixed": n_fixed,
        "gpus_saved_share": 1 - n_fixed / n_base,
        "device_hours_elastic": spent[ELASTIC],
        "device_hours_request_level": by_request,
        "device_hours_peaks": spent["each model's own peak"],
        "device_hours_saved_elastic": 1 - spent[ELASTIC] / base,
        "tokens_on_time_week": served[ELASTIC].share,
        "tokens_on_time_worst_hour": min(served[ELASTIC].by_hour),
        "tokens_on_time_week_fixed": served[FIXED].share,
        "tokens_on_time_worst_hour_fixed": min(served[FIXED].by_hour),
        "forecast_error": error.mean_share,
        "forecast_short_share": error.n_short / error.n_hours,
    }
    return {f"{name}{suffix}": value for name, value in metrics.items()}


def print_week(title: str, spent: dict[str, float], served: dict[str, Served]) -> None:
    base = spent["a device for each model"]
    rows: list[list[object]] = []
    for name, device_hours in spent.items():
        found = served.get(name)
        shares = [f"{found.share:.4f}", f"{min(found.by_hour):.4f}"] if found else ["", ""]
        rows.append([name, f"{device_hours:.0f}", f"{1 - device_hours / base:.1%}", *shares])
    table(title, ["pool", "device-hours", "saved", "tokens on time", "worst hour"], rows)


def plot_week(
    week: Week,
    hours: Sequence[int],
    needed: Sequence[float],
    pools: dict[str, Sizes],
    spent: dict[str, float],
    suffix: str,
) -> None:
    curves = {"needed (estimated)": [(hour / 24, n) for hour, n in zip(hours, needed, strict=True)]}
    for name, pool in pools.items():
        curves[name] = [(hour / 24, float(pool.devices(week.parts, at))) for at, hour in enumerate(hours)]
    series(f"market_week{suffix}", "Devices over a week of a model market", "day", "devices", curves)
    by_pool = {fill(name, 16): {"": float(n)} for name, n in spent.items()}
    bars(f"market{suffix}", "Device-hours of a week", "device-hours", by_pool)


def batch_beside(week: Week, hour: int, n: int) -> dict[str, float]:
    """The busiest part's fixed pool with batch requests added: what of its idle compute they use, and what
    others lose."""
    part, own = week.parts[0], week.beginning(0, hour)
    alone = part.simulate(own, n)
    names = list(part.levels)[:20]
    lines = traffic(np.random.default_rng(hour), dict.fromkeys(names, 0.05 * n), week.simulated_s)
    lines = [line for line in lines if line.input_tokens + line.output_tokens < 4096]
    added = [
        Arrival(replace(a.request, id=RequestId(f"batch-{a.request.id}"), service=BATCH), a.n_output)
        for a in arrivals(lines, part.market.max_context)
    ]
    both = part.simulate(sorted([*own, *added], key=lambda a: a.request.arrival_s), n)
    before, after = alone.busy(Channel.COMPUTE), both.busy(Channel.COMPUTE)
    lost = 100 * (_share(alone, of_batch=False) - _share(both, of_batch=False))
    return {
        "batch_idle_compute_used": (after - before) / (1 - before) if before < 1 else 0.0,
        "batch_interactive_lost_points": max(0.0, lost),
        "batch_tokens_on_time": _share(both, of_batch=True),
    }


def _share(outcome: Outcome, of_batch: bool) -> float:
    records = (r for r in outcome.records if r.request.id.startswith("batch-") == of_batch)
    return summarise(records).tokens_on_time


def main() -> None:
    briefly, folder = quick(sys.argv), data_folder()
    is_second = "--second-week" in sys.argv
    n_hours = 2 * WEEK if is_second else WEEK
    week = generated_week(n_hours) if folder is None else servegen_week(folder, n_hours)
    week.simulated_s = 120.0 if briefly else 300.0
    table(
        "Calibration, in the first week: fewest instances simulated, and what the fluid estimates",
        ["when", "devices each", "requests", "fluid", "instances"],
        calibrate(week, range(WEEK)),
    )
    hours = range(n_hours - WEEK, n_hours)
    metrics: dict[str, float] = {"models": sum(len(part.levels) for part in week.parts)}
    metrics |= measure(week, hours, hours[10::48] if briefly else hours, "_second_week" if is_second else "")
    if not is_second:
        metrics |= batch_beside(week, 10, fixed_pool(week, hours).by_part[0][0])
    table("Figures", ["measure", "value"], [[name, value] for name, value in metrics.items()])
    finish("market", metrics, TARGETS)


if __name__ == "__main__":
    main()
