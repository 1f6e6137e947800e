"""KV blocks of any shape, allocated from equal slabs of one arena.

A slab is a slot of the arena given to blocks of one size until all of them are free again. A block's address
must be a multiple of its own size, so that one tensor view `[block, layer, k|v, head, token, dim]` over the
whole arena reaches every block of that shape by a plain index, on any device:

    slab                |  pad | block 41 | block 42 | ... | block 80 | rest |
                        ^ offset of the slot   41 * block_bytes

A slab's capacity allows for the worst padding, so it does not depend on where the slab lies.
"""

from collections.abc import Iterable
from typing import cast

from tokenmux.core.errors import IntegrityError
from tokenmux.core.handles import BlockHandle, ExtentHandle
from tokenmux.scheduler.memory.arena import Arena

_INDEX_BITS = 24
_INDEX_MASK = (1 << _INDEX_BITS) - 1


class SlabPool:
    """Blocks by handle. A handle names a slab and a place in it, never an address."""

    def __init__(self, arena: Arena, slab_bytes: int) -> None:
        self.slab_bytes = slab_bytes
        self.used_bytes = 0
        self.was_short = False
        """True once a request for room has failed."""
        self._arena = arena
        self._slabs: dict[int, _Slab] = {}
        self._partial: dict[int, dict[int, _Slab]] = {}

    def capacity(self, block_bytes: int) -> int:
        """Number of blocks of `block_bytes` in one slab. 0 if a block is larger than half a slab, since
        the worst padding could push it out."""
        return max(0, (self.slab_bytes - block_bytes + 1) // block_bytes)

    def free_blocks(self, block_bytes: int) -> int:
        """How many blocks of that size could be allocated now."""
        partial = self._partial.get(block_bytes, {})
        in_slabs = sum(len(slab.free) for slab in partial.values())
        return in_slabs + self._arena.free_slots(self.slab_bytes) * self.capacity(block_bytes)

    def can_allocate(self, block_bytes: int, n: int) -> bool:
        """True if `allocate(block_bytes, n)` would succeed; cheaper than counting all free blocks."""
        for slab in self._partial.get(block_bytes, {}).values():
            n -= len(slab.free)
            if n <= 0:
                return True
        if n <= 0 or n <= self._arena.free_slots(self.slab_bytes) * self.capacity(block_bytes):
            return True
        self.was_short = True
        return False

    def allocate(self, block_bytes: int, n: int) -> list[BlockHandle] | None:
        """Allocate `n` blocks, from started slabs first. None, with nothing taken, if there are too few."""
        if not self.can_allocate(block_bytes, n):
            return None
        partial = self._partial.setdefault(block_bytes, {})
        handles: list[BlockHandle] = []
        while len(handles) < n:
            if not partial:
                self._open_slab(block_bytes)
            key, slab = next(iter(partial.items()))
            taken = slab.free[-(n - len(handles)) :]
            del slab.free[-len(taken) :]
            slab.live.update(taken)
            base = key << _INDEX_BITS
            handles += cast("list[BlockHandle]", [base | index for index in taken])
            if not slab.free:
                del partial[key]
        self.used_bytes += n * block_bytes
        return handles

    def free(self, handles: Iterable[BlockHandle]) -> None:
        """Free blocks; a slab whose blocks are all free returns to the arena.

        Raises IntegrityError if a block is free already, before its place could be given out twice.
        """
        slabs, slab, last_key = self._slabs, None, -1
        for handle in handles:
            key, index = handle >> _INDEX_BITS, handle & _INDEX_MASK
            if key != last_key:
                slab, last_key = slabs.get(key), key
            if slab is None or index not in slab.live:
                raise IntegrityError(f"slabs: block {index} of slab {key} is freed, and is not allocated")
            slab.live.remove(index)
            slab.free.append(index)
            self.used_bytes -= slab.block_bytes
            if not slab.live:
                self._arena.free(slab.extent)
                del slabs[key]
                self._partial[slab.block_bytes].pop(key, None)
                slab, last_key = None, -1
            elif len(slab.free) == 1:
                self._partial[slab.block_bytes][key] = slab

    def block_index(self, handle: BlockHandle) -> int:
        """The block's index in the view of the whole arena by blocks of its size: address / block_bytes."""
        return self.block_indices((handle,))[0]

    def block_indices(self, handles: Iterable[BlockHandle | None]) -> tuple[int, ...]:
        """The index of each block. None stands for no block, and is left out."""
        slabs, offset, first, last_key = self._slabs, self._arena.offset, 0, -1
        indices = []
        for handle in handles:
            if handle is not None:
                key = handle >> _INDEX_BITS
                if key != last_key:
                    slab, last_key = slabs[key], key
                    first = -(-offset(slab.extent) // slab.block_bytes)
                indices.append(first + (handle & _INDEX_MASK))
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
        held = {handle >> _INDEX_BITS for handle in handles}
        return {slab.extent for key, slab in self._slabs.items() if key not in held}

    def check_integrity(self, live: Iterable[BlockHandle]) -> None:
        """Raise IntegrityError unless exactly the blocks in `live` are allocated."""
        live = list(live)
        if len(set(live)) != len(live):
            raise IntegrityError("slabs: a block has two owners")
        expected = {key << _INDEX_BITS | index for key, slab in self._slabs.items() for index in slab.live}
        if expected != set(live):
            lost, unknown = len(expected - set(live)), len(set(live) - expected)
            raise IntegrityError(f"slabs: {lost} blocks leaked, {unknown} held blocks are not allocated")
        for key, slab in self._slabs.items():
            if sorted([*slab.free, *slab.live]) != list(range(slab.capacity)) or not slab.live:
                raise IntegrityError(f"slabs: slab {key} has a wrong free list")
            if bool(slab.free) != (key in self._partial[slab.block_bytes]):
                raise IntegrityError(f"slabs: slab {key} is filed wrongly")
        if self.used_bytes != sum(len(slab.live) * slab.block_bytes for slab in self._slabs.values()):
            raise IntegrityError("slabs: used_bytes is not the sum of the live blocks")

    def _open_slab(self, block_bytes: int) -> None:
        extent = self._arena.allocate_slot(self.slab_bytes)
        if extent is None:
            raise IntegrityError("slabs: the arena has fewer free slots than it said")
        slab = _Slab(extent, block_bytes, self.capacity(block_bytes))
        self._slabs[extent] = slab
        self._partial[block_bytes][extent] = slab


class _Slab:
    __slots__ = ("block_bytes", "capacity", "extent", "free", "live")

    def __init__(self, extent: ExtentHandle, block_bytes: int, capacity: int) -> None:
        self.extent = extent
        self.block_bytes = block_bytes
        self.capacity = capacity
        self.free = list(range(capacity - 1, -1, -1))
        self.live: set[int] = set()
