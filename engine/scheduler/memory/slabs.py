"""KV blocks of any shape, allocated from equal slabs of one arena.

A slab is a slot of the arena given to blocks of one size until all of them are free again. A block's address
must be a multiple of its own size, so that one tensor view `[block, layer, k|v, head, token, dim]` over the
whole arena reaches every block of that shape by a plain index, on any device:

    slab                |  pad | block 41 | block 42 | ... | block 80 | rest |
                        ^ offset of the slot   41 * block_bytes

A slab's capacity allows for the worst padding, so it does not depend on where the slab lies.

A block has users, each of which frees it once: requests with the same beginning share blocks. A prefix index
may *keep* a block besides. One that is kept and has no users is *idle*. Idle blocks count as room: when room
is needed, `reclaim` has the index let some go.

    allocate ──▶ 1 user ◀── share, free ──▶ 2 users
                   └── free ──▶ free again; or, if it is kept, idle ── share ──▶ 1 user
                                                                  └── let_go ──▶ free again
"""

from collections import Counter
from collections.abc import Callable, Iterable
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
        """Bytes of all blocks that are not free, idle ones included."""
        self.was_short = False
        """True once a request for room has failed."""
        self.reclaim: Callable[[], bool] = lambda: False
        """Lets idle blocks go. False if there are none."""
        self._arena = arena
        self._slabs: dict[int, _Slab] = {}
        self._partial: dict[int, dict[int, _Slab]] = {}
        self._n_idle: Counter[int] = Counter()
        """Number of idle blocks by their size."""
        self._idle_slabs: dict[int, _Slab] = {}
        """Slabs all of whose blocks are idle or free."""

    def capacity(self, block_bytes: int) -> int:
        """Number of blocks of `block_bytes` in one slab. 0 if a block is larger than half a slab, since
        the worst padding could push it out."""
        return max(0, (self.slab_bytes - block_bytes + 1) // block_bytes)

    @property
    def idle_bytes(self) -> int:
        """Bytes of the idle blocks."""
        return sum(block_bytes * n for block_bytes, n in self._n_idle.items())

    @property
    def n_idle_slabs(self) -> int:
        """Number of slabs that would return to the arena if the idle blocks were let go."""
        return len(self._idle_slabs)

    @property
    def idle_extents(self) -> set[ExtentHandle]:
        """The extents of these slabs."""
        return {slab.extent for slab in self._idle_slabs.values()}

    def free_blocks(self, block_bytes: int) -> int:
        """How many blocks of that size could be allocated now, if the idle blocks were let go."""
        n_free = self._n_idle[block_bytes]
        for key, slab in self._partial.get(block_bytes, {}).items():
            n_free += len(slab.free) if key not in self._idle_slabs else 0
        n_free -= sum(len(s.idle) for s in self._idle_slabs.values() if s.block_bytes == block_bytes)
        n_slots = 0 if self._arena.frozen else len(self._idle_slabs)
        n_slots += self._arena.free_slots(self.slab_bytes)
        return n_free + n_slots * self.capacity(block_bytes)

    def can_allocate(self, block_bytes: int, n: int) -> bool:
        """True if `allocate(block_bytes, n)` would succeed; cheaper than counting all free blocks."""
        if self._has_free(block_bytes, n) or (self._n_idle and n <= self.free_blocks(block_bytes)):
            return True
        self.was_short = True
        return False

    def allocate(self, block_bytes: int, n: int) -> list[BlockHandle] | None:
        """Allocate `n` blocks with one user each, from started slabs first. None, with nothing taken, if
        there are too few."""
        while not self._has_free(block_bytes, n):
            if not self.can_allocate(block_bytes, n):
                return None
            if not self.reclaim():
                raise IntegrityError("slabs: there are idle blocks, and none is let go")
        partial = self._partial.setdefault(block_bytes, {})
        handles: list[BlockHandle] = []
        while len(handles) < n:
            if not partial:
                self._open_slab(block_bytes)
            key, slab = next(iter(partial.items()))
            taken = slab.free[-(n - len(handles)) :]
            del slab.free[-len(taken) :]
            slab.live.update(taken)
            self._idle_slabs.pop(key, None)
            base = key << _INDEX_BITS
            handles += cast("list[BlockHandle]", [base | index for index in taken])
            if not slab.free:
                del partial[key]
        self.used_bytes += n * block_bytes
        return handles

    def free(self, handles: Iterable[BlockHandle]) -> None:
        """One user less for each of these blocks. One without users is free, or idle if it is kept; a slab
        whose blocks are all free returns to the arena.

        Raises IntegrityError if a block has no users, before its place could be given out twice.
        """
        slabs, slab, last_key = self._slabs, None, -1
        for handle in handles:
            key, index = handle >> _INDEX_BITS, handle & _INDEX_MASK
            if key != last_key:
                slab, last_key = slabs.get(key), key
            if slab is None or index not in slab.live or index in slab.idle:
                raise IntegrityError(f"slabs: block {index} of slab {key} is freed, and has no user")
            if index in slab.more_users:
                slab.more_users[index] -= 1
                if not slab.more_users[index]:
                    del slab.more_users[index]
            elif index in slab.kept:
                slab.idle.add(index)
                self._n_idle[slab.block_bytes] += 1
                self._look_whether_idle(key, slab)
            else:
                self._give_back(key, slab, index)

    def share(self, handles: Iterable[BlockHandle]) -> None:
        """One user more for each of these blocks, which must have one or be kept."""
        for handle in handles:
            key, index = handle >> _INDEX_BITS, handle & _INDEX_MASK
            slab = self._slabs[key]
            if index in slab.idle:
                slab.idle.remove(index)
                self._no_longer_idle(key, slab)
            elif index in slab.live:
                slab.more_users[index] = slab.more_users.get(index, 0) + 1
            else:
                raise IntegrityError(f"slabs: block {index} of slab {key} is shared, and is free")

    def keep(self, handles: Iterable[BlockHandle]) -> None:
        """Keep these blocks, when their users have gone, until they are let go. Each must have a user."""
        for handle in handles:
            slab, index = self._slabs[handle >> _INDEX_BITS], handle & _INDEX_MASK
            if index in slab.kept or index not in slab.live:
                raise IntegrityError(f"slabs: block {index} is kept twice, or is free")
            slab.kept.add(index)

    def let_go(self, handles: Iterable[BlockHandle]) -> None:
        """Keep these blocks no longer: those without users are free again."""
        for handle in handles:
            key, index = handle >> _INDEX_BITS, handle & _INDEX_MASK
            slab = self._slabs[key]
            slab.kept.remove(index)
            if index in slab.idle:
                slab.idle.remove(index)
                self._no_longer_idle(key, slab)
                self._give_back(key, slab, index)

    def has_idle(self, handles: Iterable[BlockHandle]) -> bool:
        """True if one of these blocks is idle."""
        return any(h & _INDEX_MASK in self._slabs[h >> _INDEX_BITS].idle for h in handles)

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

    def check_integrity(self, used: Iterable[BlockHandle], kept: Iterable[BlockHandle] = ()) -> None:
        """Raise IntegrityError unless exactly the blocks in `used` have users, each as many as it is named
        times, and exactly those in `kept` are kept."""
        expected, kept = Counter(iter(used)), list(kept)
        counted = {
            BlockHandle(key << _INDEX_BITS | index): 1 + slab.more_users.get(index, 0)
            for key, slab in self._slabs.items()
            for index in slab.live - slab.idle
        }
        if expected != counted:
            lost, unknown = Counter(counted) - expected, expected - Counter(counted)
            raise IntegrityError(
                f"slabs: {lost.total()} blocks leaked, {unknown.total()} held blocks are not allocated"
            )
        is_kept = {key << _INDEX_BITS | index for key, slab in self._slabs.items() for index in slab.kept}
        if is_kept != set(kept) or len(is_kept) != len(kept):
            raise IntegrityError("slabs: other blocks are kept than should be")
        for key, slab in self._slabs.items():
            self._check_slab(key, slab)
        if self.used_bytes != sum(len(slab.live) * slab.block_bytes for slab in self._slabs.values()):
            raise IntegrityError("slabs: used_bytes is not the sum of the live blocks")
        if self.idle_bytes != sum(len(slab.idle) * slab.block_bytes for slab in self._slabs.values()):
            raise IntegrityError("slabs: idle_bytes is not the sum of the idle blocks")

    def _check_slab(self, key: int, slab: "_Slab") -> None:
        if sorted([*slab.free, *slab.live]) != list(range(slab.capacity)) or not slab.live:
            raise IntegrityError(f"slabs: slab {key} has a wrong free list")
        if bool(slab.free) != (key in self._partial[slab.block_bytes]):
            raise IntegrityError(f"slabs: slab {key} is filed wrongly")
        if not slab.idle <= slab.kept <= slab.live or slab.more_users.keys() & slab.idle:
            raise IntegrityError(f"slabs: slab {key} has idle blocks that are not kept, or are used")
        if (len(slab.idle) == len(slab.live)) != (key in self._idle_slabs):
            raise IntegrityError(f"slabs: slab {key} is wrongly counted as idle, or as used")

    def _has_free(self, block_bytes: int, n: int) -> bool:
        """True if there are `n` free blocks without letting idle ones go."""
        for slab in self._partial.get(block_bytes, {}).values():
            n -= len(slab.free)
            if n <= 0:
                return True
        return n <= 0 or n <= self._arena.free_slots(self.slab_bytes) * self.capacity(block_bytes)

    def _give_back(self, key: int, slab: "_Slab", index: int) -> None:
        """The block is free again, and so is its slab if it was the last one there."""
        slab.live.remove(index)
        slab.free.append(index)
        self.used_bytes -= slab.block_bytes
        if not slab.live:
            self._arena.free(slab.extent)
            del self._slabs[key]
            self._idle_slabs.pop(key, None)
            self._partial[slab.block_bytes].pop(key, None)
            return
        if len(slab.free) == 1:
            self._partial[slab.block_bytes][key] = slab
        if slab.idle:
            self._look_whether_idle(key, slab)

    def _no_longer_idle(self, key: int, slab: "_Slab") -> None:
        """A block of the slab was idle until now."""
        self._n_idle[slab.block_bytes] -= 1
        if not self._n_idle[slab.block_bytes]:
            del self._n_idle[slab.block_bytes]
        self._look_whether_idle(key, slab)

    def _look_whether_idle(self, key: int, slab: "_Slab") -> None:
        if len(slab.idle) == len(slab.live):
            self._idle_slabs[key] = slab
        else:
            self._idle_slabs.pop(key, None)

    def _open_slab(self, block_bytes: int) -> None:
        extent = self._arena.allocate_slot(self.slab_bytes)
        if extent is None:
            raise IntegrityError("slabs: the arena has fewer free slots than it said")
        slab = _Slab(extent, block_bytes, self.capacity(block_bytes))
        self._slabs[extent] = slab
        self._partial[block_bytes][extent] = slab


class _Slab:
    """`live` are the blocks that are not free, `kept` and `idle` some of them. Those in `more_users` have
    that many users besides one."""

    __slots__ = ("block_bytes", "capacity", "extent", "free", "idle", "kept", "live", "more_users")

    def __init__(self, extent: ExtentHandle, block_bytes: int, capacity: int) -> None:
        self.extent = extent
        self.block_bytes = block_bytes
        self.capacity = capacity
        self.free = list(range(capacity - 1, -1, -1))
        self.live: set[int] = set()
        self.kept: set[int] = set()
        self.idle: set[int] = set()
        self.more_users: dict[int, int] = {}
