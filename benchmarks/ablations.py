"""What each rule of the default policy gains: the same workloads with one rule removed or one constant
changed.

TOKENMUX_DATA=... python -m benchmarks.ablations [--quick]
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.report import finish, table
from benchmarks.workloads import paper_file, quick
from tokenmux.scheduler.policy import loading, turns
from tokenmux.scheduler.policy.instance_policy import InstancePolicy
from tokenmux.scheduler.policy.pool import placement, rebalancing
from tokenmux.scheduler.policy.pool.placement import LeastLoaded
from tokenmux.scheduler.policy.pool.pool_policy import PoolPolicy
from tokenmux.scheduler.policy.slack import SlackPolicy
from tokenmux.simulator.scenario import simulate

WORKLOADS = ((80, 0.1, 8), (54, 0.5, 8), (80, 0.5, 11))
CASES: dict[str, tuple[object, str, float]] = {
    "bursts of 1 TPOT": (turns, "BURST_TPOTS", 1.0),
    "bursts of 12 TPOT": (turns, "BURST_TPOTS", 12.0),
    "no headroom for KV": (loading, "HEADROOM", 0.0),
    "eviction without margin": (loading, "EVICTION_MARGIN_COPIES", 0.0),
    "eviction margin of 1.5 copies": (loading, "EVICTION_MARGIN_COPIES", 1.5),
    "eviction margin of 8 copies": (loading, "EVICTION_MARGIN_COPIES", 8.0),
    "models stay on one instance": (placement, "CROWDED", 1e9),
    "the last room is never taken": (loading, "LAST_TO_GO_COPIES", 1e9),
    "moves for any gain": (rebalancing, "MOVE_GAIN", 0.0),
    "balance looked at every 5 s": (placement, "REBALANCE_TTFTS", 0.5),
}


@contextmanager
def changed(module: object, name: str, value: float) -> Iterator[None]:
    """In the block, the constant `name` of `module` is `value`."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def without_rebalancing(n: int) -> tuple[Sequence[InstancePolicy], PoolPolicy]:
    return [SlackPolicy() for _ in range(n)], LeastLoaded(rebalances=False)


def main() -> None:
    workloads = WORKLOADS[:1] if quick(sys.argv) else WORKLOADS
    data = [(*paper_file(models, rate), n) for models, rate, n in workloads]
    rows: list[list[object]] = []
    metrics: dict[str, float] = {}

    def measure(name: str, policies: object = "slack") -> None:
        shares = [
            simulate(market, arrivals, n, policies).summary().tokens_on_time  # type: ignore[arg-type]
            for market, arrivals, n in data
        ]
        rows.append([name, *shares])
        metrics[name.replace(" ", "_")] = min(shares)

    measure("as it is")
    measure("no rebalancing", without_rebalancing)
    for name, (module, constant, value) in CASES.items():
        with changed(module, constant, value):
            measure(name)
    columns = [f"{models} at {rate} on {n}" for models, rate, n in workloads]
    table("Tokens on time without one rule, or with another constant", ["case", *columns], rows)
    finish("ablations", metrics)


if __name__ == "__main__":
    main()
