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
from tokenmux.core.facts import ModelId
from tokenmux.core.handles import BlockHandle, ExtentHandle
from tokenmux.core.prefix import PrefixKey
from tokenmux.scheduler.memory.arena import EXTENT_ALIGNMENT, Arena
from tokenmux.scheduler.memory.slab import Cell
from tokenmux.scheduler.memory.slabs import SlabPool

SLAB_BYTES = 4 * EXTENT_ALIGNMENT
KEY, MODEL = PrefixKey(b"any"), ModelId("m")
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
        self.own: set[BlockHandle] = set()
        """Blocks with one user that belong to no cell."""
        self.kept: list[Cell] = []
        self.let_go_in_use: list[Cell] = []
        self.users: Counter[Cell] = Counter()
        self.pool.on_evicted = self.forget
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
            self.own.add(handle)

    @precondition(lambda self: self.own)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        handles = data.draw(st.lists(st.sampled_from(sorted(self.own)), unique=True))
        self.pool.free(handles)
        self.own -= set(handles)
        self.forget_blocks(handles)
        for handle in handles:
            with pytest.raises(IntegrityError):
                self.pool.free([handle])

    @precondition(lambda self: self.own)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        """As the index does it: what is computed becomes known."""
        size = self.live[data.draw(st.sampled_from(sorted(self.own)))]
        alike = sorted(handle for handle in self.own if self.live[handle] == size)
        cell = Cell(KEY, MODEL, data.draw(st.lists(st.sampled_from(alike), unique=True, min_size=1)))
        self.pool.keep(cell)
        self.own -= set(cell.blocks)
        self.kept.append(cell)
        self.users[cell] = 1

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        cell = data.draw(st.sampled_from(self.kept))
        self.pool.share(cell)
        self.users[cell] += 1

    @precondition(lambda self: +self.users)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """Users of cells end, with blocks of their own between those of the cells."""
        cells = data.draw(
            st.lists(st.sampled_from([cell for cell in self.users if self.users[cell]]), unique=True)
        )
        own = sorted(self.own)[: len(cells)]
        self.pool.free([*(h for cell in cells for h in cell.blocks), *own])
        self.own -= set(own)
        self.forget_blocks(own)
        for cell in cells:
            self.users[cell] -= 1
            if cell in self.let_go_in_use and not self.users[cell]:
                self.let_go_in_use.remove(cell)
                self.forget_blocks(cell.blocks)
            if not self.users[cell]:
                with pytest.raises(IntegrityError):
                    self.pool.free(cell.blocks)
            if len(cell.blocks) > 1:
                with pytest.raises(IntegrityError):
                    self.pool.free(cell.blocks[:-1])
                with pytest.raises(IntegrityError):
                    self.pool.free(cell.blocks[1:])

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def touch(self, data: st.DataObject) -> None:
        self.pool.touch(data.draw(st.sampled_from(self.kept)))

    @precondition(lambda self: self.kept)
    @rule()
    def let_go(self) -> None:
        cell = self.kept[0]
        self.pool.let_go(cell)
        if self.users[cell]:
            self.kept.remove(cell)
            self.let_go_in_use.append(cell)
        else:
            self.forget(cell)

    @rule(n_bytes=st.sampled_from([0, 1 << 30]))
    def pack(self, n_bytes: int) -> None:
        self.pool.packed_bytes = n_bytes

    @rule()
    def freeze(self) -> None:
        """While moves are under way no slab comes or goes."""
        self.arena.frozen = not self.arena.frozen

    @rule()
    def evict_idle_slabs(self) -> None:
        self.pool.evict_idle(self.pool.idle_extents)
        assert not self.pool.n_idle_slabs

    def forget(self, cell: Cell) -> None:
        assert not self.users[cell], "a cell in use is evicted"
        self.kept.remove(cell)
        self.forget_blocks(cell.blocks)

    def forget_blocks(self, handles: Iterable[BlockHandle]) -> None:
        for handle in handles:
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
        self.pool.check_integrity(self.used(), self.kept)
        self.arena.check_integrity()
        assert self.pool.used_bytes == sum(self.live.values())
        idle = {handle for cell in self.kept if not self.users[cell] for handle in cell.blocks}
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
        used = self.used()
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

    def used(self) -> list[BlockHandle]:
        """All blocks with users, each as many times as it has them."""
        return [*self.own, *(handle for cell in self.users.elements() for handle in cell.blocks)]

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.free(self.used())
            self.users.clear()
            for cell in list(self.kept):
                self.pool.let_go(cell)
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


def pool_with_cells(n_slabs: int) -> tuple[SlabPool, list[Cell], list[Cell]]:
    """Slabs of two blocks, each a cell of its own. Returns the first cells of all slabs, and the second."""
    pool = SlabPool(Arena(n_slabs * SLAB_BYTES), SLAB_BYTES)
    size = SLAB_BYTES // 3
    assert pool.capacity(size) == 2
    cells = []
    for _ in range(2 * n_slabs):
        cells.append(Cell(KEY, MODEL, pool.allocate(size, 1) or ()))
        pool.keep(cells[-1])
    return pool, cells[::2], cells[1::2]


@pytest.mark.parametrize("packed", [True, False])
def test_while_weights_come_and_go_no_slab_is_opened_beside_idle_blocks(packed: bool) -> None:
    """A block in a slab of its own keeps weights from its place."""
    pool, first, second = pool_with_cells(n_slabs=4)
    evicted: list[Cell] = []
    pool.on_evicted = evicted.append
    pool.packed_bytes = SLAB_BYTES if packed else 0
    for cell in (*second, first[0]):
        pool.free(cell.blocks)
    assert pool.n_idle_slabs == 1
    pool.let_go(first[0])
    pool.let_go(second[0])
    assert pool.allocate(SLAB_BYTES // 3, 1) is not None
    assert evicted == second[1:2] * packed, "the cell that was idle longest, or none: there was a free slab"
    assert pool.n_idle_slabs == 0


def test_packing_ends_when_enough_was_allocated() -> None:
    pool, first, second = pool_with_cells(n_slabs=4)
    size = SLAB_BYTES // 3
    pool.packed_bytes = size
    for cell in (first[0], second[0], second[1], second[2]):
        pool.free(cell.blocks)
    pool.let_go(first[0])
    pool.let_go(second[0])
    assert pool.allocate(size, 1)
    assert second[1].blocks[0] not in pool._cells, "packed"
    assert pool.allocate(size, 1)
    assert second[2].blocks[0] in pool._cells, "not packed any more: in the free slab"


def test_while_weights_come_and_go_the_highest_slab_goes_first() -> None:
    """Where the next one would be without idle cells: weights find room below."""
    pool, first, second = pool_with_cells(n_slabs=3)
    pool.packed_bytes = 10 * SLAB_BYTES
    for cell in (first[2], second[2], first[0], second[0], first[1], second[1]):
        pool.free(cell.blocks)
    pool.let_go(first[1])
    pool.let_go(second[1])
    evicted: list[Cell] = []
    pool.on_evicted = evicted.append
    for _ in range(3):
        assert pool.allocate(SLAB_BYTES // 3, 1)
    assert evicted == [first[0], second[0]], "the highest slab; then the one in the middle is free"


def test_what_was_used_last_is_evicted_last() -> None:
    """And the last cell of a prompt before the first, which the others need."""
    pool, first, second = pool_with_cells(n_slabs=3)
    evicted: list[Cell] = []
    pool.on_evicted = evicted.append
    pool.free([*first[0].blocks, *second[0].blocks])
    pool.free([*first[1].blocks, *second[1].blocks])
    pool.share(first[0])
    pool.touch(second[0])
    pool.free(first[0].blocks)
    for _ in range(4):
        assert pool.allocate(SLAB_BYTES // 3, 1)
    assert evicted == [second[1], first[1], second[0], first[0]]


def test_a_cell_that_goes_while_it_is_in_use_is_freed_by_its_last_user() -> None:
    """A model is removed while a request of it waits for an operation."""
    pool, first, _ = pool_with_cells(n_slabs=1)
    pool.share(first[0])
    pool.let_go(first[0])
    pool.free(first[0].blocks)
    assert pool.free_blocks(SLAB_BYTES // 3) == 0
    pool.free(first[0].blocks)
    assert pool.free_blocks(SLAB_BYTES // 3) == 1
    assert not pool.idle_bytes
