"""Fewest H100s, as in `benchmarks.fewest_gpus`, if KV is as large as these models' really is.

The paper's artifact counts a KV head for each attention head. Eight of ten of its models have fewer: a token
takes 57 kB instead of 401 in Qwen2.5-7B (4 heads for 28) and 98 instead of 786 in Yi-1.5-9B (4 for 32). Step
times were measured with the real ones, so only memory and copies are counted too large there. The targets are
those of `benchmarks.fewest_gpus`.

    TOKENMUX_DATA=... python -m benchmarks.real_kv [--quick]
"""

import sys

from benchmarks.fewest_gpus import (
    CRAMPED_HARDWARE,
    TARGETS,
    WORKLOADS,
    Workload,
    in_steady_state,
    search,
    under_doubt,
)
from benchmarks.report import finish, table
from benchmarks.workloads import GOAL, data_folder, quick, with_real_kv
from tokenmux.simulator.doubts import ALL_DOUBTS

BASELINES = ("aegaeon", "request-level")


def counts(workload: Workload, briefly: bool) -> dict[str, int | None]:
    """The smallest numbers of GPUs for this workload, by the suffix of their metric."""
    least, _ = search(workload, "slack", with_real_kv)
    found = {"": least}
    if least is not None and not briefly:
        found["_pessimistic"] = under_doubt(workload, least, ALL_DOUBTS, CRAMPED_HARDWARE, with_real_kv)
        found["_steady"] = in_steady_state(workload, with_real_kv)
        for policy in BASELINES:
            found["_" + policy.replace("-", "_")], _ = search(workload, policy, with_real_kv)
    return found


def main() -> None:
    briefly = quick(sys.argv)
    rows: list[list[object]] = []
    metrics: dict[str, float] = {}
    for workload in WORKLOADS:
        name = f"{workload[0]} at {workload[1]}"
        found = counts(workload, briefly)
        rows.append([name, *("none" if n is None else n for n in found.values())])
        key = f"gpus_{name.replace(' ', '_')}"
        metrics |= {key + suffix: n for suffix, n in found.items() if n is not None}
    heads = ["slack"] if briefly else ["slack", "all doubts", "steady", *BASELINES]
    files = "the paper's files" if data_folder() else "generated traffic (TOKENMUX_DATA is not set)"
    title = f"Fewest H100 with {GOAL:.0%} of tokens on time and KV as large as it really is, {files}"
    table(title, ["workload", *heads], rows)
    finish("real_kv", metrics, TARGETS)


if __name__ == "__main__":
    main()
