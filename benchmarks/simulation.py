"""How fast the simulator is: the paper's 80 models on 8 GPUs, and 1,000 models on 200 GPUs for ten minutes of traffic.

python -m benchmarks.simulation [--quick]
"""

import resource
import sys
import time

from benchmarks.report import Target, finish, table
from benchmarks.workloads import paper_file, quick, steady
from tokenmux.engine.sim.scenario import Market, simulate
from tokenmux.engine.workload.trace import Arrival

TARGETS = {
    "seconds_80_models": Target("fast enough to search with", at_most=5.0),
    "seconds_1000_models": Target("on one core", at_most=300.0),
}


def main() -> None:
    rows: list[list[object]] = []
    metrics: dict[str, float] = {}

    def measure(name: str, market: Market, arrivals: list[Arrival], n_gpus: int) -> None:
        began = time.process_time()
        outcome = simulate(market, arrivals, n_gpus)
        seconds = time.process_time() - began
        metrics[f"seconds_{name}"] = seconds
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        summary = outcome.summary()
        rows.append([name, n_gpus, len(arrivals), outcome.n_steps, seconds, peak_mb, summary.tokens_on_time])

    measure("80_models", *paper_file(80, 0.1), 8)
    if not quick(sys.argv):
        measure("1000_models", *steady(1000, 0.1, 600.0), 200)
    table(
        "Simulation speed",
        ["workload", "GPUs", "requests", "steps", "seconds", "peak MB", "tokens on time"],
        rows,
    )
    finish("simulation", metrics, TARGETS)


if __name__ == "__main__":
    main()
