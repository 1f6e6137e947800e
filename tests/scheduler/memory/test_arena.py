"""The arena's books against a plain bytearray: whatever is allocated, freed and compacted, contents
survive in place."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokenmux.core.errors import IntegrityError
from tokenmux.core.handles import ExtentHandle
from tokenmux.scheduler.memory.arena import EXTENT_ALIGNMENT, Arena, aligned

SLOT_BYTES = 4 * EXTENT_ALIGNMENT
POISON = 0xEE


def pattern(tag: int, n_bytes: int) -> bytes:
    """Contents that no other extent has, and no other place in the same extent."""
    return b"".join(b"%04d%04d" % (tag, place) for place in range(n_bytes // 8))


class ArenaMachine(RuleBasedStateMachine):
    """Beside the arena: a bytearray as the device, and holes found naively from where the extents lie."""

    @initialize(units=st.integers(0, 40), rest=st.integers(0, EXTENT_ALIGNMENT - 1))
    def create(self, units: int, rest: int) -> None:
        self.arena = Arena(units * EXTENT_ALIGNMENT + rest)
        self.memory = bytearray([POISON]) * self.arena.capacity

    def holes(self, without: frozenset[ExtentHandle] = frozenset()) -> list[tuple[int, int]]:
        """Free ranges as (start, end) if the extents of `without` were free too."""
        kept = sorted(self.span(h) for h in self.arena.handles if h not in without)
        borders = [0, *(edge for span in kept for edge in span), self.arena.capacity]
        return [(a, b) for a, b in zip(borders[::2], borders[1::2], strict=True) if b > a]

    def span(self, handle: ExtentHandle) -> tuple[int, int]:
        return self.arena.offset(handle), self.arena.offset(handle) + self.arena.size(handle)

    def free_slots(self) -> list[int]:
        tops = range(self.arena.capacity, SLOT_BYTES - 1, -SLOT_BYTES)
        holes = self.holes()
        return [t - SLOT_BYTES for t in tops if any(a <= t - SLOT_BYTES and t <= b for a, b in holes)]

    def fill(self, handle: ExtentHandle) -> None:
        start, end = self.span(handle)
        assert self.memory[start:end] == bytes([POISON]) * (end - start), "the range was not free"
        self.memory[start:end] = pattern(handle, end - start)

    def forget(self, handle: ExtentHandle) -> None:
        start, end = self.span(handle)
        self.memory[start:end] = bytes([POISON]) * (end - start)
        self.arena.free(handle)

    def some_of(self, data: st.DataObject) -> frozenset[ExtentHandle]:
        handles = self.arena.handles
        return data.draw(st.frozensets(st.sampled_from(handles))) if handles else frozenset()

    @rule(n_bytes=st.integers(0, 12 * EXTENT_ALIGNMENT))
    def allocate_low(self, n_bytes: int) -> None:
        fitting = [a for a, b in self.holes() if b - a >= aligned(n_bytes)]
        handle = self.arena.allocate_low(n_bytes)
        assert (handle is None) == (not fitting)
        if handle is not None:
            assert self.span(handle) == (fitting[0], fitting[0] + aligned(n_bytes))
            self.fill(handle)

    @rule()
    def allocate_slot(self) -> None:
        slots = self.free_slots()
        handle = self.arena.allocate_slot(SLOT_BYTES)
        assert (handle is None) == (not slots)
        if handle is not None:
            assert self.span(handle) == (slots[0], slots[0] + SLOT_BYTES)
            self.fill(handle)

    @precondition(lambda self: self.arena.handles)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.arena.handles))
        self.forget(handle)
        with pytest.raises(IntegrityError):
            self.arena.free(handle)

    @precondition(lambda self: self.arena.handles)
    @rule(data=st.data(), n_bytes=st.integers(1, 20 * EXTENT_ALIGNMENT))
    def compact(self, data: st.DataObject, n_bytes: int) -> None:
        freed, movable = self.some_of(data), self.some_of(data)
        fixed = [self.span(h) for h in self.arena.handles if h not in freed | movable]
        moves = self.arena.plan_compaction(n_bytes, movable, freed)
        assert (moves is not None) == (self.best_hole(fixed, freed) >= aligned(n_bytes))
        if moves is None:
            return
        for handle in freed:
            self.forget(handle)
        for move in moves:
            assert move.handle in movable
            assert move.target < move.source, "extents slide down only"
            content = bytes(self.memory[move.source : move.source + move.n_bytes])
            self.memory[move.source : move.source + move.n_bytes] = bytes([POISON]) * move.n_bytes
            target = self.memory[move.target : move.target + move.n_bytes]
            assert set(target) <= {POISON}, "the target is not free at its turn"
            self.memory[move.target : move.target + move.n_bytes] = content
        self.arena.apply(moves)
        assert self.arena.largest_hole >= aligned(n_bytes)

    def best_hole(self, fixed: list[tuple[int, int]], freed: frozenset[ExtentHandle]) -> int:
        """Sliding cannot pass what is fixed, so the best hole is the most free space between two fixed
        neighbours."""
        borders = [0, *(edge for span in sorted(fixed) for edge in span), self.arena.capacity]
        holes = self.holes(freed)
        sums = [
            sum(min(b, right) - max(a, left) for a, b in holes if a < right and b > left)
            for left, right in zip(borders[::2], borders[1::2], strict=True)
        ]
        return max(sums)

    @rule(data=st.data())
    def ask_for_a_hole(self, data: st.DataObject) -> None:
        without = self.some_of(data)
        naive = max((b - a for a, b in self.holes(without)), default=0)
        assert self.arena.hole_without(without) == naive

    @rule()
    def freeze(self) -> None:
        """While moves are under way nothing finds room, and freeing goes on."""
        self.arena.frozen = True
        assert self.arena.allocate_low(1) is None
        assert self.arena.allocate_slot(SLOT_BYTES) is None
        assert self.arena.largest_hole == self.arena.free_slots(SLOT_BYTES) == 0
        if self.arena.handles:
            self.forget(self.arena.handles[0])
        self.arena.frozen = False

    @invariant()
    def books_and_contents_agree(self) -> None:
        self.arena.check_integrity()
        for handle in self.arena.handles:
            start, end = self.span(handle)
            assert start % 256 == 0, "weights would return at another alignment"
            assert self.memory[start:end] == pattern(handle, end - start)
        assert self.arena.largest_hole == max((b - a for a, b in self.holes()), default=0)
        assert self.arena.free_bytes == sum(b - a for a, b in self.holes())
        assert self.arena.free_slots(SLOT_BYTES) == len(self.free_slots())


ArenaMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestArena = ArenaMachine.TestCase


def two_extents() -> tuple[Arena, ExtentHandle, ExtentHandle]:
    arena = Arena(8 * EXTENT_ALIGNMENT)
    first, second = arena.allocate_low(EXTENT_ALIGNMENT), arena.allocate_low(EXTENT_ALIGNMENT)
    assert first is not None
    assert second is not None
    return arena, first, second


@pytest.mark.parametrize(
    ("says", "damage"),
    [
        ("does not follow", lambda arena: arena._holes.clear() or arena._holes.append((0, EXTENT_ALIGNMENT))),
        ("does not follow", lambda arena: arena._extents.update({99: (0, EXTENT_ALIGNMENT)})),
        ("pieces end at", lambda arena: arena._holes.clear()),
        ("two holes meet", lambda arena: arena._holes.append((4 * EXTENT_ALIGNMENT, 8 * EXTENT_ALIGNMENT))),
        ("not the sum", lambda arena: setattr(arena, "used_bytes", 0)),
    ],
)
def test_audit_notices_damaged_books(says, damage) -> None:
    arena, _, _ = two_extents()
    if says == "two holes meet":
        arena._holes[:] = [(2 * EXTENT_ALIGNMENT, 4 * EXTENT_ALIGNMENT)]
    damage(arena)
    with pytest.raises(IntegrityError, match=says):
        arena.check_integrity()


def test_a_move_that_starts_elsewhere_is_refused() -> None:
    arena, first, _ = two_extents()
    arena.free(first)
    (move,) = arena.plan_compaction(7 * EXTENT_ALIGNMENT, set(arena.handles)) or ()
    arena.apply((move,))
    with pytest.raises(IntegrityError, match="does not start where its extent lies"):
        arena.apply((move,))
    arena.check_integrity()


def test_the_lowest_hole_takes_no_more_than_it_needs() -> None:
    """Of what may be freed only that which lies in the hole, and nothing if one is free already."""
    arena = Arena(10 * EXTENT_ALIGNMENT)
    first, *freed = [arena.allocate_low(2 * EXTENT_ALIGNMENT) for _ in range(4)]
    assert first is not None
    assert None not in freed
    may_go = {handle for handle in freed if handle is not None}
    assert arena.freed_for(2 * EXTENT_ALIGNMENT, may_go) == freed[:1]
    assert arena.freed_for(3 * EXTENT_ALIGNMENT, may_go) == freed[:2]
    assert arena.freed_for(8 * EXTENT_ALIGNMENT, may_go) == freed, "up to the end, with the hole there"
    assert arena.freed_for(2 * EXTENT_ALIGNMENT, {freed[2]}) == [freed[2]]
    with pytest.raises(IntegrityError):
        arena.freed_for(9 * EXTENT_ALIGNMENT, may_go)
    arena.free(first)
    assert arena.freed_for(2 * EXTENT_ALIGNMENT, may_go) == []
