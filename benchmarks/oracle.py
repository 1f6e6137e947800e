"""The value of knowing how long answers will be: `slack` against `oracle`, at its edge and with one GPU less.

TOKENMUX_DATA=... python -m benchmarks.oracle [--quick]
"""

import sys

from benchmarks.plots import bars
from benchmarks.report import finish, table
from benchmarks.workloads import paper_file, quick
from tokenmux.simulator.scenario import simulate

POINTS = ((80, 0.1, 8), (80, 0.1, 7), (54, 0.5, 8), (54, 0.5, 7), (80, 0.5, 11), (80, 0.5, 10))


def main() -> None:
    rows: list[list[object]] = []
    metrics: dict[str, float] = {}
    groups: dict[str, dict[str, float]] = {}
    for n_models, rate, n_gpus in POINTS[:2] if quick(sys.argv) else POINTS:
        market, arrivals = paper_file(n_models, rate)
        summaries = {p: simulate(market, arrivals, n_gpus, p).summary() for p in ("slack", "oracle")}
        shares = {policy: summary.tokens_on_time for policy, summary in summaries.items()}
        whole = [summary.requests_on_time for summary in summaries.values()]
        rows.append([f"{n_models} at {rate}", n_gpus, *shares.values(), *whole])
        groups[f"{n_models} at {rate}\non {n_gpus}"] = shares
        metrics[f"gain_{n_models}_at_{rate}_on_{n_gpus}"] = shares["oracle"] - shares["slack"]
    bars("oracle", "Knowing how long answers will be", "share of tokens on time", groups)
    columns = ["workload", "H100", "tokens, slack", "tokens, oracle", "requests, slack", "requests, oracle"]
    table("Share of tokens, and of whole requests, on time", columns, rows)
    finish("oracle", metrics)


if __name__ == "__main__":
    main()
