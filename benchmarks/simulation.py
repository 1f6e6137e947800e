"""How fast the simulator is: the paper's 80 models on 8 GPUs, a plan of 80 models with the baselines, and
1,000 models on 200 GPUs for ten minutes.

python -m benchmarks.simulation [--quick]
"""

import resource
import sys
import time

from benchmarks.report import Target, finish, table
from benchmarks.workloads import GOAL, paper_file, quick, steady
from tokenmux.simulator.planner.capacity_plan import BASELINES, OURS
from tokenmux.simulator.planner.plan_search import PlanSearch, plan_here
from tokenmux.simulator.planner.question import Question, world_of
from tokenmux.simulator.scenario import Market, simulate
from tokenmux.workload.trace import Arrival

TARGETS = {
    "seconds_80_models": Target("fast enough to search with", at_most=5.0),
    "seconds_plan_80": Target("a plan that one waits for, in one process", at_most=20.0),
    "seconds_1000_models": Target("simulated whole, on one core", at_most=60.0),
}


def _plan() -> float:
    """Seconds for `tokenmux plan` of 80 models of three sizes at 0.1 requests per second, compared with the
    baselines, in one process."""
    world = world_of(Question(["32*llama3.2-3b", "32*qwen2.5-7b", "16*llama2-13b"]))
    began = time.process_time()
    plan_here(PlanSearch(world, GOAL, (OURS, *BASELINES), with_spans=False))
    return time.process_time() - began


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
    metrics["seconds_plan_80"] = _plan()
    if not quick(sys.argv):
        measure("1000_models", *steady(1000, 0.1, 600.0), 200)
    table(
        "Simulation speed",
        ["workload", "GPUs", "requests", "steps", "seconds", "peak MB", "tokens on time"],
        rows,
    )
    print(f"a plan of 80 models of three sizes with the baselines: {metrics['seconds_plan_80']:.1f} s\n")
    finish("simulation", metrics, TARGETS)


if __name__ == "__main__":
    main()
