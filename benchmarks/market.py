"""A model market: every client of ServeGen's m-large as a model of its own, a busy stretch of a working day.

Three quarters of its models are silent nearly always and come in bursts. Fewest H100s by policy, and the GPUs saved against a device
for each model.

    TOKENMUX_DATA=... python -m benchmarks.market [--quick]
"""

import sys

import numpy as np

from benchmarks.report import Target, finish, table
from benchmarks.workloads import GOAL, data_folder, quick
from tokenmux.engine.sim.scenario import Market, paper_market, simulate
from tokenmux.engine.sim.search import fewest
from tokenmux.engine.workload.generate import gamma_with_cv, traffic, zipf_rates
from tokenmux.engine.workload.published import first_appearances
from tokenmux.engine.workload.servegen import market as servegen_market
from tokenmux.engine.workload.servegen import read_lengths, read_windows
from tokenmux.engine.workload.shape import clipped
from tokenmux.engine.workload.trace import Arrival, Trace, arrivals

TARGETS = {"gpus_saved_share": Target("the paper's deployment saved 82% of its GPUs", at_least=0.82)}
START_S = 10 * 3600.0
"""Ten in the morning of the first day."""


def workload(duration_s: float) -> tuple[Market, list[Arrival]]:
    rng = np.random.default_rng(0)
    folder = data_folder()
    trace: Trace
    if folder is None:
        names = [f"model-{index}" for index in range(160)]
        rates = dict(zip(names, zipf_rates(160, 16.0, 1.2), strict=True))
        trace = traffic(rng, rates, duration_s, process=gamma_with_cv(4))
    else:
        windows = read_windows(
            folder / "servegen" / "arrivals.csv.gz", "m-large", START_S, START_S + duration_s
        )
        busy = [window for window in windows if window.rate_rps < MOST_RPS]
        lengths = read_lengths(folder / "servegen" / "length_quantiles.csv.gz", "m-large")
        trace = servegen_market(rng, busy, lengths, START_S)
    market = paper_market(first_appearances(trace))
    trace = clipped(trace, min(market.max_context.values()))
    return market, arrivals(trace, market.max_context)


MOST_RPS = 2.0
"""Clients above this rate fill a device of their own, and are left to dedicated ones."""


def main() -> None:
    market, requests = workload(600.0 if quick(sys.argv) else 1200.0)
    rows: list[list[object]] = []
    metrics: dict[str, float] = {"models": len(market.facts), "requests": len(requests)}
    for policy in ("slack",) if quick(sys.argv) else ("slack", "request-level", "aegaeon"):

        def is_enough(n: int, policy: str = policy) -> bool:
            return simulate(market, requests, n, policy).summary().tokens_on_time >= GOAL

        n = fewest(is_enough, 2, len(market.facts))
        rows.append([policy, str(n)])
        if n is not None:
            metrics["gpus_" + policy.replace("-", "_")] = n
    if "gpus_slack" in metrics:
        metrics["gpus_saved_share"] = 1 - metrics["gpus_slack"] / len(market.facts)
    table(
        f"{len(market.facts)} models, {len(requests)} requests: fewest H100 with {GOAL:.0%} of tokens on time",
        ["policy", "GPUs"],
        [*rows, ["dedicated", str(len(market.facts))]],
    )
    finish("market", metrics, TARGETS)


if __name__ == "__main__":
    main()
