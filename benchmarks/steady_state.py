"""Most models on 16 H100s in steady state: Poisson traffic, warm-up cut, 99% of tokens on time.

python -m benchmarks.steady_state [--quick]
"""

import sys

from benchmarks.report import Target, finish, table
from benchmarks.workloads import GOAL, quick, steady
from tokenmux.core.plan import Channel
from tokenmux.simulator.planner.search import most
from tokenmux.simulator.scenario import Outcome, simulate

TARGETS = {
    "models_at_0.1": Target("a prototype kept about 157", at_least=150),
    "models_at_0.5": Target("a prototype kept about 102", at_least=100),
}
N_GPUS = 16
SETTINGS = ((0.1, 400.0, 100.0, 110, 190), (0.5, 240.0, 60.0, 70, 130))
"""Rate, duration, warm-up, and the range of models that is searched."""


def search(
    rate: float, duration_s: float, warm_up_s: float, low: int, high: int
) -> tuple[int, list[list[object]]]:
    """The largest number of models, and a row of the table for each number that was tried."""
    results: dict[int, Outcome] = {}

    def is_enough(n: int) -> bool:
        market, arrivals = steady(n, rate, duration_s)
        results[n] = simulate(market, arrivals, N_GPUS)
        return results[n].summary(warm_up_s).tokens_on_time >= GOAL

    n = most(is_enough, low, high, step=2)
    rows: list[list[object]] = []
    for models, outcome in sorted(results.items()):
        summary = outcome.summary(warm_up_s)
        shares = [summary.tokens_on_time, summary.requests_on_time]
        busy = [outcome.busy(Channel.COMPUTE), outcome.busy(Channel.COPY_IN)]
        rows.append([f"{models} at {rate}", *shares, summary.ttft_p50_s, summary.ttft_p99_s, *busy])
    return n, rows


def main() -> None:
    rows: list[list[object]] = []
    metrics: dict[str, float] = {}
    shorter = 2 if quick(sys.argv) else 1
    for rate, duration_s, warm_up_s, low, high in SETTINGS:
        n, tried = search(rate, duration_s / shorter, warm_up_s / shorter, low, high)
        metrics[f"models_at_{rate}"] = n
        rows += tried
    table(
        f"Steady state on {N_GPUS} H100 (warm-up cut)",
        ["models", "tokens on time", "requests", "TTFT p50 s", "TTFT p99 s", "compute", "copy-in"],
        rows,
    )
    finish("steady_state", metrics, TARGETS)


if __name__ == "__main__":
    main()
