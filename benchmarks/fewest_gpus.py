"""Fewest H100s that keep 99% of all tokens on time, on the paper's own workload files, by policy.

TOKENMUX_DATA=... python -m benchmarks.fewest_gpus [--quick]
"""

import sys
import time

from benchmarks.plots import bars
from benchmarks.report import Target, finish, table
from benchmarks.workloads import GOAL, data_folder, paper_file, quick
from tokenmux.engine.core.plan import Channel
from tokenmux.engine.sim.scenario import Outcome, simulate
from tokenmux.engine.sim.search import fewest

SOURCE = "measured by a prototype on the same files; the paper's scheduler needs about 25, 26, 39"
TARGETS = {
    "gpus_80_at_0.1": Target(SOURCE, at_most=8),
    "gpus_54_at_0.5": Target(SOURCE, at_most=8),
    "gpus_80_at_0.5": Target(SOURCE, at_most=11),
}
WORKLOADS = ((80, 0.1, 6), (54, 0.5, 6), (80, 0.5, 9))
"""Models, requests per second each, and where the search begins."""


def search(workload: tuple[int, float, int], policy: str) -> tuple[int | None, list[object]]:
    """The least number of GPUs, and what the simulation with it says, as cells of the table."""
    n_models, rate, low = workload
    market, arrivals = paper_file(n_models, rate)
    outcomes: dict[int, Outcome] = {}
    began = time.perf_counter()

    def is_enough(n: int) -> bool:
        outcomes[n] = simulate(market, arrivals, n, policy)
        return outcomes[n].summary().tokens_on_time >= GOAL

    n = fewest(is_enough, low, n_models)
    if n is None:
        return None, [f"{n_models} at {rate}", policy, f"more than {n_models}", *[""] * 6]
    outcome, summary = outcomes[n], outcomes[n].summary()
    shares = [summary.tokens_on_time, summary.requests_on_time, summary.artifact_attainment]
    busy = [outcome.busy(Channel.COMPUTE), outcome.busy(Channel.COPY_IN)]
    return n, [f"{n_models} at {rate}", policy, str(n), *shares, *busy, time.perf_counter() - began]


def main() -> None:
    rows: list[list[object]] = []
    metrics: dict[str, float] = {}
    groups: dict[str, dict[str, float]] = {}
    for workload in WORKLOADS:
        for policy in ("slack",) if quick(sys.argv) else ("slack", "aegaeon", "request-level"):
            n, row = search(workload, policy)
            rows.append(row)
            if n is not None:
                suffix = "" if policy == "slack" else "_" + policy.replace("-", "_")
                metrics[f"gpus_{workload[0]}_at_{workload[1]}{suffix}"] = n
                groups.setdefault(f"{workload[0]} at {workload[1]}", {})[policy] = n
    bars("fewest_gpus", f"Fewest H100 with {GOAL:.0%} of tokens on time", "GPUs", groups)
    files = "the paper's files" if data_folder() else "generated traffic (TOKENMUX_DATA is not set)"
    table(
        f"Fewest H100 with {GOAL:.0%} of tokens on time, {files}",
        ["workload", "policy", "GPUs", "tokens", "requests", "artifact's", "compute", "copy-in", "search s"],
        rows,
    )
    finish("fewest_gpus", metrics, TARGETS)


if __name__ == "__main__":
    main()
