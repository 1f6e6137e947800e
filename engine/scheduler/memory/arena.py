"""The extents of one arena: contiguous ranges, handed out as handles from either end, compacted on request.

    0                                                            capacity
    [weights A][weights B][   hole   ][weights C] ... hole ... [slab][slab]
     ─── allocate_low ───▶                                 ◀── allocate_slot ───

Weights grow from the low end, slabs from the high end, and the border between them floats. Slabs lie on a
fixed grid of equal slots counted from the top, so that they never fragment among themselves. Compaction
slides weights down; slabs that a full arena once forced low, between weights, are lifted to the top again.
Everything is integers: no device is touched.
"""

from bisect import bisect_left, insort
from collections.abc import Set as AbstractSet

from tokenmux.core.errors import IntegrityError
from tokenmux.core.handles import ExtentHandle, ExtentMove

EXTENT_ALIGNMENT = 256
"""In bytes. Matrix libraries choose a kernel by the alignment of its operands, up to 256 bytes on a GPU. With
every extent on such a boundary a tensor has the same alignment wherever its image lies, so a swap cannot
change the kernel."""


class Arena:
    """The books of one arena of `capacity` bytes.

    >>> arena = Arena(4096)
    >>> weights, slab = arena.allocate_low(1000), arena.allocate_slot(512)
    >>> arena.offset(weights), arena.offset(slab), arena.free_bytes
    (0, 3584, 2560)
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity - capacity % EXTENT_ALIGNMENT
        self.used_bytes = 0
        self.frozen = False
        """True while moves are under way. Nothing may be allocated then: their sources look free but are
        not yet."""
        self._extents: dict[ExtentHandle, tuple[int, int]] = {}
        self._holes: list[tuple[int, int]] = [(0, self.capacity)] if self.capacity else []
        self._next = 0

    @property
    def free_bytes(self) -> int:
        return self.capacity - self.used_bytes

    @property
    def largest_hole(self) -> int:
        return 0 if self.frozen else max((end - start for start, end in self._holes), default=0)

    @property
    def handles(self) -> list[ExtentHandle]:
        return list(self._extents)

    def offset(self, handle: ExtentHandle) -> int:
        return self._extents[handle][0]

    def size(self, handle: ExtentHandle) -> int:
        return self._extents[handle][1]

    def allocate_low(self, n_bytes: int) -> ExtentHandle | None:
        """Allocate in the lowest hole that is large enough. None if there is none."""
        size = aligned(n_bytes)
        for start, end in () if self.frozen else self._holes:
            if end - start >= size:
                return self._take(start, size)
        return None

    def allocate_slot(self, slot_bytes: int) -> ExtentHandle | None:
        """Allocate the highest free slot of the grid `[capacity - (i + 1) * slot_bytes, capacity - i *
        slot_bytes)`."""
        offset = self.highest_slot(slot_bytes)
        return None if offset < 0 else self._take(offset, slot_bytes)

    def highest_slot(self, slot_bytes: int) -> int:
        """The offset of that slot. -1 if there is none."""
        for start, end in () if self.frozen else reversed(self._holes):
            first = -(-(self.capacity - end) // slot_bytes)
            offset = self.capacity - (first + 1) * slot_bytes
            if offset >= start:
                return offset
        return -1

    def free_slots(self, slot_bytes: int) -> int:
        """How many times `allocate_slot` would succeed."""
        if self.frozen:
            return 0
        return sum(
            max(0, (self.capacity - start) // slot_bytes - -(-(self.capacity - end) // slot_bytes))
            for start, end in self._holes
        )

    def free(self, handle: ExtentHandle) -> None:
        """Free an extent. Raises IntegrityError if it is free already."""
        if handle not in self._extents:
            raise IntegrityError(f"arena: extent {handle} is freed, and is not allocated")
        start, size = self._extents.pop(handle)
        self.used_bytes -= size
        self._give_back(start, start + size)

    def hole_without(self, freed: AbstractSet[ExtentHandle]) -> int:
        """Size of the largest hole there would be if the extents in `freed` were free."""
        pieces = list(self._holes)
        for handle in freed:
            start, length = self._extents[handle]
            pieces.append((start, start + length))
        pieces.sort()
        best = first = end = 0
        for start, piece_end in pieces:
            if start > end:
                first = start
            end = piece_end
            best = max(best, end - first)
        return best

    def freed_for(self, n_bytes: int, freed: AbstractSet[ExtentHandle]) -> list[ExtentHandle]:
        """Those of the extents in `freed` that lie in the lowest hole of `n_bytes` that freeing all of them
        would make. Raises IntegrityError if there would be none."""
        size = aligned(n_bytes)
        pieces = [(start, end, ExtentHandle(-1)) for start, end in self._holes]
        for handle in freed:
            start, length = self._extents[handle]
            pieces.append((start, start + length, handle))
        first = last = 0
        within: list[ExtentHandle] = []
        for start, end, handle in sorted(pieces):
            if start > last:
                first, within = start, []
            if handle >= 0:
                within.append(handle)
            last = end
            if last - first >= size:
                return within
        raise IntegrityError(f"arena: no hole of {n_bytes} bytes, whatever is freed")

    def plan_compaction(
        self,
        n_bytes: int,
        movable: AbstractSet[ExtentHandle],
        freed: AbstractSet[ExtentHandle] = frozenset(),
        slots: AbstractSet[ExtentHandle] = frozenset(),
    ) -> tuple[ExtentMove, ...] | None:
        """The moves, in order, that slide `movable` extents down until a hole of `n_bytes` exists. None if no
        moves do.

        If sliding is not enough, `slots` (equal extents on the grid) are lifted first, the lowest to the
        highest free place. Extents in `freed` count as free. The target of a slide lies below its source and
        is free at its turn, that of a lift is entirely free: each move is a plain (overlapping) memmove.
        """
        size = aligned(n_bytes)
        extents = {handle: e for handle, e in self._extents.items() if handle not in freed}
        moves = _slide(extents, self.capacity, size, movable)
        if moves is None and slots:
            lifts = _lift(extents, self.capacity, slots)
            extents.update((move.handle, (move.target, move.n_bytes)) for move in lifts)
            slides = _slide(extents, self.capacity, size, movable) if lifts else None
            moves = None if slides is None else lifts + slides
        return None if moves is None else tuple(moves)

    def apply(self, moves: tuple[ExtentMove, ...]) -> None:
        """Record moves in the books, in order."""
        for move in moves:
            start, size = self._extents[move.handle]
            if (start, size) != (move.source, move.n_bytes):
                raise IntegrityError(f"move {move} does not start where its extent lies ({start}, {size})")
            del self._extents[move.handle]
            self.used_bytes -= size
            self._give_back(start, start + size)
            self._carve(move.target, size)
            self._extents[move.handle] = (move.target, size)
            self.used_bytes += size

    def check_integrity(self) -> None:
        """Raise IntegrityError unless extents and holes tile the arena exactly."""
        pieces = sorted([(s, s + n, "extent") for s, n in self._extents.values()])
        pieces = sorted(pieces + [(s, e, "hole") for s, e in self._holes])
        cursor, before = 0, ""
        for start, end, kind in pieces:
            if start != cursor or end <= start:
                raise IntegrityError(f"arena: {kind} [{start}, {end}) does not follow {cursor}")
            if kind == before == "hole":
                raise IntegrityError(f"arena: two holes meet at {start}")
            cursor, before = end, kind
        if cursor != self.capacity:
            raise IntegrityError(f"arena: pieces end at {cursor} of {self.capacity}")
        if self.used_bytes != sum(size for _, size in self._extents.values()):
            raise IntegrityError("arena: used_bytes is not the sum of the extents")

    def _take(self, offset: int, size: int) -> ExtentHandle:
        self._carve(offset, size)
        handle = ExtentHandle(self._next)
        self._next += 1
        self._extents[handle] = (offset, size)
        self.used_bytes += size
        return handle

    def _carve(self, offset: int, size: int) -> None:
        """Remove `[offset, offset + size)` from the hole that contains it."""
        index = bisect_left(self._holes, (offset + 1, 0)) - 1
        start, end = self._holes[index] if index >= 0 else (0, 0)
        if not start <= offset <= offset + size <= end:
            raise IntegrityError(f"arena: [{offset}, {offset + size}) is not free")
        rest = [(start, offset)] if offset > start else []
        if offset + size < end:
            rest.append((offset + size, end))
        self._holes[index : index + 1] = rest

    def _give_back(self, start: int, end: int) -> None:
        index = bisect_left(self._holes, (start, 0))
        if index < len(self._holes) and self._holes[index][0] == end:
            end = self._holes.pop(index)[1]
        if index > 0 and self._holes[index - 1][1] == start:
            start = self._holes.pop(index - 1)[0]
        insort(self._holes, (start, end))


_Extents = dict[ExtentHandle, tuple[int, int]]


def _slide(
    extents: _Extents, capacity: int, size: int, movable: AbstractSet[ExtentHandle]
) -> list[ExtentMove] | None:
    moves: list[ExtentMove] = []
    cursor = 0
    for handle, (start, length) in sorted(extents.items(), key=lambda item: item[1][0]):
        if start - cursor >= size:
            return moves
        if handle in movable and start > cursor:
            moves.append(ExtentMove(handle, start, cursor, length))
            start = cursor
        cursor = start + length
    return moves if capacity - cursor >= size else None


def _lift(extents: _Extents, capacity: int, slots: AbstractSet[ExtentHandle]) -> list[ExtentMove]:
    """Lift the lowest of `slots` to the highest free places of their grid, as long as that moves them up."""
    lowest = sorted((extents[handle][0], handle) for handle in slots)
    slot_bytes = extents[lowest[0][1]][1]
    taken: set[int] = set()
    for start, length in extents.values():
        taken.update(range((capacity - start - length) // slot_bytes, -(-(capacity - start) // slot_bytes)))
    moves: list[ExtentMove] = []
    place = 0
    for start, handle in lowest:
        while place in taken:
            place += 1
        target = capacity - (place + 1) * slot_bytes
        if target <= start:
            break
        moves.append(ExtentMove(handle, start, target, slot_bytes))
        place += 1
    return moves


def aligned(n_bytes: int) -> int:
    """`n_bytes` rounded up to the arena's alignment, and at least one unit of it."""
    return max(EXTENT_ALIGNMENT, -(-n_bytes // EXTENT_ALIGNMENT) * EXTENT_ALIGNMENT)
