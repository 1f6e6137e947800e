"""40 models on 16 H100s against the request rate of each.

TOKENMUX_DATA=... python -m benchmarks.rates [--quick]
"""

import sys

from benchmarks.report import finish
from benchmarks.sweep import edge, sweep
from benchmarks.workloads import GOAL, paper_file, quick

RATES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)


def main() -> None:
    rates = RATES[1::4] if quick(sys.argv) else RATES
    results = sweep(
        "rates", "40 models on 16 H100", "requests/s per model", rates, lambda rate: paper_file(40, rate)
    )
    metrics = {
        f"rate_{policy.replace('-', '_')}": edge(summaries, lambda s: s.tokens_on_time, GOAL)
        for policy, summaries in results.items()
    }
    finish("rates", metrics)


if __name__ == "__main__":
    main()
