"""Tighter service levels: 1x, 0.5x and 0.3x of 10 s and 100 ms, and TTFT 2 s and TPOT 50 ms alone.

TOKENMUX_DATA=... python -m benchmarks.service_levels [--quick]
"""

import sys

from benchmarks.plots import bars
from benchmarks.report import Target, finish, table
from benchmarks.sweep import POLICIES
from benchmarks.workloads import paper_file, quick
from tokenmux.core.request import ServiceLevel
from tokenmux.simulator.scenario import simulate

LEVELS = {
    "1x": ServiceLevel(10, 0.1),
    "0.5x": ServiceLevel(5, 0.05),
    "0.3x": ServiceLevel(3, 0.03),
    "ttft_2s": ServiceLevel(2, 0.1),
    "tpot_50ms": ServiceLevel(10, 0.05),
}
TARGETS = {f"lead_{name}": Target("not worse than aegaeon anywhere", at_least=0.0) for name in LEVELS}


def main() -> None:
    rows: list[list[object]] = []
    metrics: dict[str, float] = {}
    groups: dict[str, dict[str, float]] = {}
    for n_models, rate in ((40, 0.1),) if quick(sys.argv) else ((40, 0.1), (56, 0.1), (40, 0.3)):
        for name, level in LEVELS.items():
            shares = {}
            for policy in POLICIES:
                market, arrivals = paper_file(n_models, rate, level)
                summary = simulate(market, arrivals, 16, policy).summary()
                shares[policy] = summary.tokens_on_time
                rows.append(
                    [f"{n_models} at {rate}", name, policy, summary.tokens_on_time, summary.requests_on_time]
                )
            lead = shares["slack"] - shares["aegaeon"]
            metrics[f"lead_{name}"] = min(lead, metrics.get(f"lead_{name}", lead))
            groups[f"{n_models} at {rate}\n{name}"] = shares
    bars("service_levels", "Service levels on 16 H100", "share of tokens on time", groups)
    table("Service levels on 16 H100", ["workload", "level", "policy", "tokens", "requests"], rows)
    finish("service_levels", metrics, TARGETS)


if __name__ == "__main__":
    main()
