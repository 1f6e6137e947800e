"""KV blocks of any shape, allocated from equal slabs of one arena.

A slab is a slot of the arena given to blocks of one size until all of them are free again. A block's address
must be a multiple of its own size, so that one tensor view `[block, layer, k|v, head, token, dim]` over the
whole arena reaches every block of that shape by a plain index, on any device:

    slab                |  pad | block 41 | block 42 | ... | block 80 | rest |
                        ^ offset of the slot   41 * block_bytes

A slab's capacity allows for the worst padding, so it does not depend on where the slab lies.

A block has one user, who frees it. Blocks that a prefix index keeps form a *cell*, which has any number of
users: requests with the same beginning. A cell without users is *idle*. Its blocks count as free, and it is
evicted when their room is needed. Only slabs without a block in use make room for weights, so while weights
come and go blocks are *packed*: each is put where it would be if there were no idle cells.

    allocate ──▶ 1 user ── keep ──▶ cell with 1 user ◀── share, free ──▶ cell with 2 users
                   │                      └── free ──▶ idle ── share ──▶ 1 user
                   └── free ──▶ free again ◀── let_go ──┘
"""

from collections.abc import Callable, Iterable
from typing import cast

from tokenmux.core.errors import IntegrityError
from tokenmux.core.handles import BlockHandle, ExtentHandle
from tokenmux.scheduler.memory import slab_audit
from tokenmux.scheduler.memory.arena import Arena
from tokenmux.scheduler.memory.slab import INDEX_BITS, INDEX_MASK, Cell, Slab


class SlabPool:
    """Blocks by handle. A handle names a slab and a place in it, never an address."""

    def __init__(self, arena: Arena, slab_bytes: int) -> None:
        self.slab_bytes = slab_bytes
        self.used_bytes = 0
        """Bytes of all blocks that are not free, idle ones included."""
        self.idle_bytes = 0
        """Bytes of the blocks of idle cells."""
        self.was_short = False
        """True once a request for room has failed."""
        self.on_evicted: Callable[[Cell], None] = lambda cell: None
        """Called with every cell that is evicted because its room is needed."""
        self.packed_bytes = 0
        """Blocks are packed until this many more bytes have been allocated."""
        self._arena = arena
        self._slabs: dict[int, Slab] = {}
        self._partial: dict[int, dict[int, Slab]] = {}
        """By size of blocks: slabs in use with blocks that are free or idle."""
        self._idle_slabs: dict[int, Slab] = {}
        """Slabs all of whose blocks are idle or free."""
        self._cells: dict[BlockHandle, Cell] = {}
        """All cells, by their first block."""
        self._idle: dict[Cell, None] = {}
        """The idle cells, the longest idle first."""

    def capacity(self, block_bytes: int) -> int:
        """Number of blocks of `block_bytes` in one slab. 0 if a block is larger than half a slab, since
        the worst padding could push it out."""
        return max(0, (self.slab_bytes - block_bytes + 1) // block_bytes)

    @property
    def n_idle_slabs(self) -> int:
        """Number of slabs that would return to the arena if the idle cells were evicted."""
        return len(self._idle_slabs)

    @property
    def idle_extents(self) -> set[ExtentHandle]:
        """The extents of these slabs."""
        return {slab.extent for slab in self._idle_slabs.values()}

    def free_blocks(self, block_bytes: int) -> int:
        """How many blocks of that size could be allocated now."""
        partial = self._partial.get(block_bytes, {})
        n_free = sum(slab.capacity - slab.n_used for slab in partial.values())
        return n_free + self._free_slots() * self.capacity(block_bytes)

    def can_allocate(self, block_bytes: int, n: int) -> bool:
        """True if `allocate(block_bytes, n)` would succeed; cheaper than counting all free blocks."""
        for slab in self._partial.get(block_bytes, {}).values():
            n -= slab.capacity - slab.n_used
            if n <= 0:
                return True
        if n <= 0 or n <= self._free_slots() * self.capacity(block_bytes):
            return True
        self.was_short = True
        return False

    def allocate(self, block_bytes: int, n: int) -> list[BlockHandle] | None:
        """Allocate `n` blocks with one user each, from started slabs first. None, with nothing taken, if
        there are too few."""
        if not self.can_allocate(block_bytes, n):
            return None
        handles: list[BlockHandle] = []
        while len(handles) < n:
            slab = self._with_room(block_bytes)
            taken = slab.free[-(n - len(handles)) :]
            del slab.free[-len(taken) :]
            slab.own.update(taken)
            slab.n_used += len(taken)
            self._refile(slab)
            base = slab.extent << INDEX_BITS
            handles += cast("list[BlockHandle]", [base | index for index in taken])
        self.used_bytes += n * block_bytes
        self.packed_bytes -= n * block_bytes
        return handles

    def free(self, handles: Iterable[BlockHandle]) -> None:
        """One user less for each of these blocks; those of a cell are named together and in order. A cell
        without users is idle if it is kept. A slab whose blocks are all free returns to the arena.

        Raises IntegrityError if a block has no users, before its place could be given out twice.
        """
        handles, cells = list(handles), self._cells
        slab: Slab | None = None
        last_key, place = -1, 0
        left: list[Cell] = []
        while place < len(handles):
            handle = handles[place]
            if handle in cells:
                cell = cells[handle]
                end = place + len(cell.blocks)
                if tuple(handles[place:end]) != cell.blocks:
                    raise IntegrityError(
                        f"slabs: blocks {handles[place:end]} are freed, and are not one cell"
                    )
                if slab is not None:
                    self._refile(slab)
                slab, last_key, place = None, -1, end
                self._leave(cell)
                left.append(cell)
                continue
            key, index = handle >> INDEX_BITS, handle & INDEX_MASK
            if key != last_key:
                if slab is not None:
                    self._refile(slab)
                slab, last_key = self._slabs.get(key), key
            if slab is None or index not in slab.own:
                raise IntegrityError(f"slabs: block {index} of slab {key} is freed, and has no user")
            slab.own.remove(index)
            slab.free.append(index)
            slab.n_used -= 1
            self.used_bytes -= slab.block_bytes
            place += 1
        if slab is not None:
            self._refile(slab)
        for cell in reversed(left):  # the last cell of a prompt is worth nothing without the others
            self.touch(cell)

    def keep(self, cell: Cell) -> None:
        """Make blocks with one user a cell with one user, which stays when its users have gone."""
        by_slab: dict[int, list[int]] = {}
        for handle in cell.blocks:
            by_slab.setdefault(handle >> INDEX_BITS, []).append(handle & INDEX_MASK)
        cell.parts = [(self._slabs[key], places) for key, places in by_slab.items()]
        for slab, places in cell.parts:
            if not slab.own.issuperset(places):
                raise IntegrityError(
                    f"slabs: blocks {places} of slab {slab.extent} are kept, and have no user"
                )
            slab.own.difference_update(places)
        self._cells[cell.blocks[0]] = cell

    def share(self, cell: Cell) -> None:
        """One user more for the cell."""
        if not cell.n_users:
            self._no_longer_idle(cell)
            for slab, places in cell.parts:
                slab.n_used += len(places)
                self._refile(slab)
        cell.n_users += 1

    def touch(self, cell: Cell) -> None:
        """Count an idle cell as used just now."""
        if cell in self._idle:
            for idle in (self._idle, *(slab.idle for slab, _ in cell.parts)):
                del idle[cell]
                idle[cell] = None

    def let_go(self, cell: Cell) -> None:
        """Keep the cell no longer: its blocks are free again once it has no users."""
        cell.is_kept = False
        if not cell.n_users:
            self._no_longer_idle(cell)
            self._give_back(cell)

    def evict_idle(self, extents: Iterable[ExtentHandle]) -> None:
        """Evict all cells that have blocks in slabs in these extents, as far as all blocks there are idle."""
        slabs = [self._idle_slabs[extent] for extent in extents if extent in self._idle_slabs]
        for cell in dict.fromkeys(cell for slab in slabs for cell in slab.idle):
            self._evict(cell)

    def evict_all_idle(self) -> None:
        for cell in list(self._idle):
            self._evict(cell)

    def block_index(self, handle: BlockHandle) -> int:
        """The block's index in the view of the whole arena by blocks of its size: address / block_bytes."""
        return self.block_indices((handle,))[0]

    def block_indices(self, handles: Iterable[BlockHandle | None]) -> tuple[int, ...]:
        """The index of each block. None stands for no block, and is left out."""
        slabs, offset, first, last_key = self._slabs, self._arena.offset, 0, -1
        indices = []
        for handle in handles:
            if handle is not None:
                key = handle >> INDEX_BITS
                if key != last_key:
                    slab, last_key = slabs[key], key
                    first = -(-offset(slab.extent) // slab.block_bytes)
                indices.append(first + (handle & INDEX_MASK))
        return tuple(indices)

    def span(self, extent: ExtentHandle) -> tuple[int, int] | None:
        """Offset of the slab's blocks in this extent, and their total bytes. None if the extent is not a
        slab of ours."""
        slab = self._slabs.get(extent)
        if slab is None:
            return None
        first = -(-self._arena.offset(extent) // slab.block_bytes)
        return first * slab.block_bytes, slab.capacity * slab.block_bytes

    @property
    def extents(self) -> list[ExtentHandle]:
        return [slab.extent for slab in self._slabs.values()]

    def extents_without(self, handles: Iterable[BlockHandle]) -> set[ExtentHandle]:
        """The extents of all slabs that hold none of these blocks."""
        held = {handle >> INDEX_BITS for handle in handles}
        return {slab.extent for key, slab in self._slabs.items() if key not in held}

    def check_integrity(self, used: Iterable[BlockHandle], kept: Iterable[Cell] = ()) -> None:
        """Raise IntegrityError unless exactly the blocks in `used` have users, each as many as it is named
        times, and exactly the cells in `kept` are kept."""
        slab_audit.check_users(self._slabs, self._cells, used, kept)
        idle = {cell for cell in self._cells.values() if not cell.n_users}
        if idle != self._idle.keys() or not all(cell.is_kept for cell in idle):
            raise IntegrityError("slabs: idle cells are filed wrongly")
        for key, slab in self._slabs.items():
            slab_audit.check_slab(slab, self._cells)
            is_partial = 0 < slab.n_used < slab.capacity
            is_filed = (key in self._partial[slab.block_bytes], key in self._idle_slabs)
            if is_filed != (is_partial, not slab.n_used):
                raise IntegrityError(f"slabs: slab {key} is filed wrongly")
        if self.used_bytes != sum((s.capacity - len(s.free)) * s.block_bytes for s in self._slabs.values()):
            raise IntegrityError("slabs: used_bytes is not the sum of the blocks that are not free")
        if self.idle_bytes != sum(cell.n_bytes for cell in idle):
            raise IntegrityError("slabs: idle_bytes is not the sum of the idle blocks")

    # ── parts of the above ──────────────────────────────────────────────────────────────────────────────────

    def _free_slots(self) -> int:
        """How many slabs could be opened, if idle cells were evicted."""
        return 0 if self._arena.frozen else self._arena.free_slots(self.slab_bytes) + len(self._idle_slabs)

    def _with_room(self, block_bytes: int) -> Slab:
        """A slab with a free block; there must be room for one."""
        arena, partial = self._arena, self._partial.setdefault(block_bytes, {})
        for slab in partial.values():
            if slab.free:
                return slab
            if self.packed_bytes > 0:
                return self._with_evicted(slab)
        if self.packed_bytes > 0 and self._idle_slabs and not arena.frozen:
            self._free_highest_slot()
        elif not arena.free_slots(self.slab_bytes):
            if arena.frozen or not self._idle_slabs:
                return self._with_evicted(next(iter(partial.values())))
            found = self._longest_idle(block_bytes)
            if found is not None:
                return found
        extent = arena.allocate_slot(self.slab_bytes)
        if extent is None:
            raise IntegrityError("slabs: the arena has fewer free slots than it said")
        slab = self._slabs[extent] = Slab(extent, block_bytes, self.capacity(block_bytes))
        return slab

    def _free_highest_slot(self) -> None:
        """Evict the highest idle slab, if no slot above it is free: weights shall find room below."""
        highest = max((slab.extent for slab in self._idle_slabs.values()), key=self._arena.offset)
        if self._arena.highest_slot(self.slab_bytes) < self._arena.offset(highest):
            self.evict_idle((highest,))

    def _longest_idle(self, block_bytes: int) -> Slab | None:
        """Evict the cells that are idle longest, until one of them leaves a slab with a free block, which is
        returned, or a free slot."""
        while not self._arena.free_slots(self.slab_bytes):
            cell = next(iter(self._idle))
            self._evict(cell)
            for slab, _ in cell.parts:
                if slab.block_bytes == block_bytes and slab.extent in self._slabs:
                    return slab
        return None

    def _with_evicted(self, slab: Slab) -> Slab:
        """The slab, after idle cells in it were evicted, the longest idle first, until a block is free."""
        while not slab.free:
            self._evict(next(iter(slab.idle)))
        return slab

    def _refile(self, slab: Slab) -> None:
        """File the slab by whether it is in use and has room; without any blocks it returns to the arena."""
        key, partial = slab.extent, self._partial[slab.block_bytes]
        if slab.n_used:
            self._idle_slabs.pop(key, None)
            if slab.n_used == slab.capacity:
                partial.pop(key, None)
            elif key not in partial:
                partial[key] = slab
            return
        partial.pop(key, None)
        if slab.idle:
            self._idle_slabs[key] = slab
        else:
            self._idle_slabs.pop(key, None)
            del self._slabs[key]
            self._arena.free(slab.extent)

    def _leave(self, cell: Cell) -> None:
        """One user less for the cell."""
        if not cell.n_users:
            raise IntegrityError("slabs: a cell is freed, and has no user")
        cell.n_users -= 1
        if cell.n_users:
            return
        for slab, places in cell.parts:
            slab.n_used -= len(places)
        if not cell.is_kept:
            self._give_back(cell)
            return
        self._idle[cell] = None
        self.idle_bytes += cell.n_bytes
        for slab, _ in cell.parts:
            slab.idle[cell] = None
            self._refile(slab)

    def _no_longer_idle(self, cell: Cell) -> None:
        del self._idle[cell]
        self.idle_bytes -= cell.n_bytes
        for slab, _ in cell.parts:
            del slab.idle[cell]

    def _give_back(self, cell: Cell) -> None:
        """The blocks of a cell without users are free again."""
        del self._cells[cell.blocks[0]]
        self.used_bytes -= cell.n_bytes
        for slab, places in cell.parts:
            slab.free.extend(places)
            self._refile(slab)

    def _evict(self, cell: Cell) -> None:
        """Let an idle cell go because its room is needed."""
        self.on_evicted(cell)
        self.let_go(cell)
