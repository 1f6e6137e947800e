"""How busy an instance is: the larger of two shares, and what models add that never fit together."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.core.facts import ModelId
from tokenmux.scheduler.policy.loading import HEADROOM
from tokenmux.scheduler.policy.pool.demand import Demand
from tokenmux.scheduler.policy.pool.instance_load import CLASH, InstanceLoad

ARENA_BYTES = 1_000


def demand(weight_bytes: int, compute: float = 0.1, copy: float = 0.2, kv_bytes: int = 0) -> Demand:
    return Demand(compute, copy, weight_bytes, kv_bytes, kv_copy=0.5)


def load_of(*demands: Demand) -> InstanceLoad:
    return InstanceLoad(ARENA_BYTES, demands={ModelId(f"m{i}"): one for i, one in enumerate(demands)})


def test_the_larger_share_counts_and_lateness_is_added() -> None:
    assert load_of().busy == 0.0
    load = load_of(demand(100, compute=0.3), demand(100, compute=0.3))
    assert load.busy == pytest.approx(0.6)
    load.lag = 0.5
    assert load.busy == pytest.approx(1.1)
    assert load_of(demand(100), demand(100)).busy == pytest.approx(0.4), "copies"


def test_kv_is_copied_as_far_as_it_finds_no_room_beside_the_two_largest_models() -> None:
    assert load_of(demand(300, kv_bytes=400), demand(200)).busy == pytest.approx(0.4)
    assert load_of(demand(300, kv_bytes=1_000), demand(200)).busy == pytest.approx(0.4 + 0.5 * (0.5 + 0.5))


@given(sizes=st.lists(st.integers(1, 1_200), max_size=12), asked=st.integers(1, 1_200))
def test_clashes_are_the_pairs_that_never_fit_into_the_arena_together(sizes: list[int], asked: int) -> None:
    load = load_of(*(demand(size) for size in sizes))
    room = (1 - HEADROOM) * ARENA_BYTES
    n_pairs = sum(a + b > room for a, b in combinations(sizes, 2))
    assert load.now - load.busy == pytest.approx(CLASH * 2 * n_pairs / max(1, len(sizes)))
    assert load.n_clashes(asked) == sum(asked + size > room for size in sizes)


def test_what_comes_and_goes_counts_at_once() -> None:
    load = load_of(demand(100))
    before = load.now
    assert load.larger(extra=demand(950)) > before + CLASH
    load.add(ModelId("large"), demand(950))
    assert load.now == pytest.approx(before + 0.2 + CLASH)
    assert load.larger(without=ModelId("large")) == before
    assert load.n_clashes(100) == 1
    assert load.n_clashes(100, without=ModelId("large")) == 0
    load.remove(ModelId("large"))
    assert (load.now, load.n_clashes(100)) == (before, 0)
