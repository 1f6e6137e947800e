"""KV blocks of many shapes out of the same slabs: nobody's address range meets another's, and every leak
is noticed."""

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokenmux.core.errors import IntegrityError
from tokenmux.core.handles import BlockHandle, ExtentHandle
from tokenmux.scheduler.memory.arena import EXTENT_ALIGNMENT, Arena
from tokenmux.scheduler.memory.slabs import SlabPool

SLAB_BYTES = 4 * EXTENT_ALIGNMENT
BLOCK_SIZES = (7, 24, 64, 100, 128)
"""Odd ones, even ones, one that leaves most of a slab as padding (100), and the largest that fits (128)."""


class SlabMachine(RuleBasedStateMachine):
    """Blocks come and go in several shapes while weights come and go below them. Some have several users, and
    some are kept when these have gone."""

    @initialize(units=st.integers(0, 40))
    def create(self, units: int) -> None:
        self.arena = Arena(units * EXTENT_ALIGNMENT)
        self.pool = SlabPool(self.arena, SLAB_BYTES)
        self.live: dict[BlockHandle, int] = {}
        """Blocks that are not free, with their sizes."""
        self.users: Counter[BlockHandle] = Counter()
        self.kept: list[BlockHandle] = []
        self.pool.reclaim = self.let_one_go
        self.index: dict[BlockHandle, int] = {}
        self.weights: list[ExtentHandle] = []

    @rule(block_bytes=st.sampled_from(BLOCK_SIZES), n=st.integers(0, 12))
    def allocate(self, block_bytes: int, n: int) -> None:
        n_free = self.pool.free_blocks(block_bytes)
        assert self.pool.can_allocate(block_bytes, n) == (n <= n_free)
        handles = self.pool.allocate(block_bytes, n)
        if n > n_free:
            assert handles is None
            assert self.pool.free_blocks(block_bytes) == n_free, "a refusal takes nothing"
            return
        assert handles is not None
        assert len(handles) == n
        assert not self.live.keys() & set(handles)
        assert self.pool.free_blocks(block_bytes) == n_free - n
        for handle in handles:
            self.live[handle] = block_bytes
            self.index[handle] = self.pool.block_index(handle)
            self.users[handle] = 1

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        handles = data.draw(st.lists(st.sampled_from(sorted(self.users)), unique=True))
        self.pool.free(handles)
        self.users = +(self.users - Counter(handles))
        self.forget_free(handles)
        for handle in handles:
            if not self.users[handle]:
                with pytest.raises(IntegrityError):
                    self.pool.free([handle])

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        handles = data.draw(st.lists(st.sampled_from(sorted(self.live)), unique=True))
        self.pool.share(handles)
        self.users += Counter(handles)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        """As the index does it: what is computed becomes known."""
        handles = data.draw(st.lists(st.sampled_from(sorted(self.users)), unique=True))
        fresh = [handle for handle in handles if handle not in self.kept]
        self.pool.keep(fresh)
        self.kept += fresh

    @precondition(lambda self: self.kept)
    @rule()
    def let_go(self) -> None:
        handle = self.kept.pop(0)
        self.pool.let_go([handle])
        self.forget_free([handle])

    def let_one_go(self) -> bool:
        idle = [handle for handle in self.kept if not self.users[handle]]
        if idle:
            self.kept.remove(idle[0])
            self.pool.let_go(idle[:1])
            self.forget_free(idle[:1])
        return bool(idle)

    def forget_free(self, handles: Iterable[BlockHandle]) -> None:
        for handle in handles:
            if not self.users[handle] and handle not in self.kept:
                del self.live[handle], self.index[handle]

    @rule(n_bytes=st.integers(1, 6 * EXTENT_ALIGNMENT))
    def load_weights(self, n_bytes: int) -> None:
        extent = self.arena.allocate_low(n_bytes)
        if extent is not None:
            self.weights.append(extent)

    @precondition(lambda self: self.weights)
    @rule(data=st.data())
    def evict_weights(self, data: st.DataObject) -> None:
        self.arena.free(self.weights.pop(data.draw(st.integers(0, len(self.weights) - 1))))

    @invariant()
    def no_byte_has_two_owners(self) -> None:
        """Each block lies at a multiple of its size, inside a slab of its own shape, apart from all
        others."""
        self.pool.check_integrity(self.users.elements(), self.kept)
        self.arena.check_integrity()
        assert self.pool.used_bytes == sum(self.live.values())
        idle = {handle for handle in self.kept if not self.users[handle]}
        assert self.pool.idle_bytes == sum(self.live[handle] for handle in idle)
        busy = {handle >> 24 for handle in self.live.keys() - idle}
        assert self.pool.idle_extents == set(self.pool.extents) - busy, "a slab with users is not idle"
        assert set(self.arena.handles) == {*self.pool.extents, *self.weights}
        slabs = [(self.arena.offset(e), self.arena.offset(e) + SLAB_BYTES) for e in self.pool.extents]
        shapes: dict[tuple[int, int], int] = {}
        ranges = []
        for handle, block_bytes in self.live.items():
            assert self.pool.block_index(handle) == self.index[handle], "a live block has moved"
            start = self.index[handle] * block_bytes
            (home,) = [slab for slab in slabs if slab[0] <= start and start + block_bytes <= slab[1]]
            assert shapes.setdefault(home, block_bytes) == block_bytes
            ranges.append((start, start + block_bytes))
        ranges.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(ranges))

    @invariant()
    def a_leak_is_noticed(self) -> None:
        used = list(self.users.elements())
        for handle in used[:1]:
            with pytest.raises(IntegrityError, match="1 blocks leaked, 0 held"):
                self.pool.check_integrity(used[1:], self.kept)
            with pytest.raises(IntegrityError, match="0 blocks leaked, 1 held"):
                self.pool.check_integrity([*used, handle], self.kept)
        if self.kept:
            with pytest.raises(IntegrityError, match="kept than should be"):
                self.pool.check_integrity(used, self.kept[1:])
        with pytest.raises(IntegrityError, match="0 blocks leaked, 1 held"):
            self.pool.check_integrity([*used, BlockHandle(12345 << 24)], self.kept)

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.free(self.users.elements())
            self.pool.let_go(self.kept)
            assert self.pool.used_bytes == 0
            assert self.pool.extents == [], "an empty slab goes back to the arena"
            assert set(self.arena.handles) == set(self.weights)


SlabMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30)
TestSlabs = SlabMachine.TestCase


@settings(max_examples=100)
@given(block_bytes=st.integers(1, SLAB_BYTES + 10), below=st.integers(0, 3))
def test_capacity_does_not_depend_on_place(block_bytes: int, below: int) -> None:
    """Wherever a slab lies, the worst padding in front of its first block leaves room for as many blocks."""
    arena = Arena(SLAB_BYTES + below * EXTENT_ALIGNMENT)
    pool = SlabPool(arena, SLAB_BYTES)
    capacity = pool.capacity(block_bytes)
    handles = pool.allocate(block_bytes, capacity)
    if block_bytes > (SLAB_BYTES + 1) // 2:
        assert capacity == 0
        assert pool.allocate(block_bytes, 1) is None
        return
    assert handles is not None
    starts = sorted(pool.block_index(handle) * block_bytes for handle in handles)
    assert starts[0] >= arena.capacity - SLAB_BYTES
    assert starts[-1] + block_bytes <= arena.capacity
    assert pool.allocate(block_bytes, 1) is None, "one slab was all there was"


@pytest.mark.parametrize(
    ("says", "damage"),
    [
        ("wrong free list", lambda pool, slab: slab.free.append(slab.free[0])),
        ("wrong free list", lambda pool, slab: slab.free.pop()),
        ("filed wrongly", lambda pool, slab: pool._partial[64].clear()),
        ("used_bytes", lambda pool, slab: setattr(pool, "used_bytes", 0)),
    ],
)
def test_audit_notices_damaged_books(says: str, damage: Callable[[SlabPool, object], None]) -> None:
    pool = SlabPool(Arena(SLAB_BYTES), SLAB_BYTES)
    handles = pool.allocate(64, 1)
    assert handles is not None
    pool.check_integrity(handles)
    damage(pool, next(iter(pool._slabs.values())))
    with pytest.raises(IntegrityError, match=says):
        pool.check_integrity(handles)
