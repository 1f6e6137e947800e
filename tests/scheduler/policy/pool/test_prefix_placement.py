"""Where requests go whose prompts begin like earlier ones: to the instance that has KV of that, as long as
this is sooner done than computing it elsewhere."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.scheduler.policy.pool.test_placement import Watched
from tokenmux.core.request import RequestId, ServiceLevel
from tokenmux.scheduler.policy.instance_policy import InstancePolicy
from tokenmux.scheduler.policy.pool import placement
from tokenmux.scheduler.policy.pool.placement import LeastLoaded
from tokenmux.scheduler.policy.pool.pool_policy import PoolPolicy
from tokenmux.scheduler.policy.registry import make_policies
from tokenmux.simulator.planner.named_models import parse_market
from tokenmux.simulator.scenario import Hardware, Outcome, simulate
from tokenmux.workload.trace import TraceRequest, arrivals

MODEL = "qwen2.5-7b"
CELL = 2048
SERVICE = ServiceLevel(ttft_s=2.0, tpot_s=0.1)


def prompt(at_s: float, number: int, beginning: int | None = None, n_cells: int = 5) -> TraceRequest:
    """A prompt of its own after four cells of a beginning that it shares, if it has one."""
    own = 1_000_000 + 1000 * number
    shared = [] if beginning is None else [1000 * beginning + block for block in range(16)]
    ids = (*shared, *range(own, own + 4 * n_cells - len(shared)))
    return TraceRequest(at_s, MODEL, n_cells * CELL, 50, hash_ids=ids)


def run(lines: list[TraceRequest], n_instances: int, *, shares: bool = True) -> tuple[Watched, Outcome]:
    market = parse_market([MODEL], {})
    policies, _ = make_policies("slack", n_instances)
    watched = Watched(LeastLoaded())

    def watch(_: int) -> tuple[Sequence[InstancePolicy], PoolPolicy]:
        return policies, watched

    cell_tokens = Hardware().instance(market).cell_tokens
    assert cell_tokens == CELL
    coming = arrivals(lines, market.max_context, SERVICE, cell_tokens=cell_tokens if shares else None)
    outcome = simulate(market, coming, n_instances, watch)
    for instance in outcome.simulator.instances:
        instance.check_integrity()
    return watched, outcome


def placed(watched: Watched, number: int) -> int:
    return watched.placed[RequestId(str(number))]


def test_a_request_goes_where_its_beginning_is() -> None:
    """A crowd spreads one model over two instances; each of its prompts comes again in peace."""
    first = [prompt(0.05 * i, i, beginning=i) for i in range(20)]
    again = [prompt(100.0 + 5 * i, 100 + i, beginning=i) for i in range(20)]
    watched, outcome = run(first + again, 2)
    where = [placed(watched, i) for i in range(20)]
    assert min(Counter(where).values()) > 3
    assert [placed(watched, 20 + i) for i in range(20)] == where
    assert outcome.prefix_hit_share == pytest.approx(20 * 4 / (40 * 5))
    blind, without = run(first + again, 2, shares=False)
    assert len({placed(blind, 20 + i) for i in range(20)}) == 1, "one instance would do"
    assert without.prefix_hit_share == 0.0


def test_a_beginning_of_everyone_does_not_overload_one_instance() -> None:
    warm = [prompt(0.0, 0, beginning=7)]
    crowd = [prompt(20.0 + 0.02 * i, 1 + i, beginning=7) for i in range(300)]
    watched, outcome = run(warm + crowd, 4)
    n_placed = Counter(placed(watched, 1 + i) for i in range(300))
    assert len(n_placed) == 4
    assert max(n_placed.values()) < 2 * min(n_placed.values())
    apart, without = run(warm + crowd, 4, shares=False)
    assert outcome.summary().tokens_on_time >= without.summary().tokens_on_time
    assert len(set(apart.placed.values())) == 4


@pytest.mark.parametrize("seed", range(3))
def test_prompts_that_share_nothing_go_where_they_would_without_a_cache(seed: int) -> None:
    lines = [prompt(0.1 * i, 1000 * seed + i) for i in range(60)]
    shared, on = run(lines, 3)
    unshared, off = run(lines, 3, shares=False)
    assert shared.placed == unshared.placed
    assert on.summary() == off.summary()


@pytest.mark.pure
def test_hits_are_more_where_placement_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversations of many turns, on instances that are all busy."""
    turns = [
        replace(
            prompt(8.0 * turn + 0.05 * talk, 0, n_cells=2 + turn),
            hash_ids=tuple(1000 * talk + block for block in range(4 * (2 + turn))),
        )
        for turn in range(5)
        for talk in range(100)
    ]
    _, aware = run(turns, 4)
    monkeypatch.setattr(placement, "saved_share", lambda *_: 0.0)
    _, blind = run(turns, 4)
    assert aware.prefix_hit_share > blind.prefix_hit_share + 0.05
    assert aware.summary().ttft_p50_s < blind.summary().ttft_p50_s
