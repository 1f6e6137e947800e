"""KV blocks of prompts' cells by their keys, least recently used first: what requests with the same beginning
share.

There is one for an instance's arena, and one for the host KV. The index *keeps* its blocks
(`tokenmux.scheduler.memory.slabs`): requests come and go as their users, and blocks without users are let go
as soon as anything else needs the room.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tokenmux.core.errors import IntegrityError
from tokenmux.core.facts import ModelId
from tokenmux.core.handles import BlockHandle
from tokenmux.core.prefix import PrefixKey
from tokenmux.scheduler.memory.slabs import SlabPool


class CachedCell(NamedTuple):
    """The KV blocks of one cell of a prompt."""

    model: ModelId
    blocks: tuple[BlockHandle, ...]


class PrefixIndex:
    """Finds the blocks of `pool` that hold KV of known cells.

    >>> from tokenmux.scheduler.memory.arena import Arena
    >>> pool = SlabPool(Arena(1024), slab_bytes=256)
    >>> index, key = PrefixIndex(pool), PrefixKey(b"the first two blocks")
    >>> blocks = pool.allocate(block_bytes=16, n=2)
    >>> index.keep(key, CachedCell(ModelId("m"), tuple(blocks)))
    >>> pool.free(blocks)  # the request has ended
    >>> index.share(key) == tuple(blocks), len(index)
    (True, 1)
    """

    def __init__(self, pool: SlabPool) -> None:
        self.pool = pool
        pool.reclaim = self._let_one_go
        self._cells: OrderedDict[PrefixKey, CachedCell] = OrderedDict()
        """Least recently used first."""

    def __len__(self) -> int:
        return len(self._cells)

    def __contains__(self, key: PrefixKey) -> bool:
        return key in self._cells

    def keep(self, key: PrefixKey, cell: CachedCell) -> None:
        """Keep a cell whose KV is complete and will not be written again. Its blocks must have a user."""
        if key in self._cells:
            raise IntegrityError("prefix index: a cell is kept twice")
        self.pool.keep(cell.blocks)
        self._cells[key] = cell

    def share(self, key: PrefixKey) -> tuple[BlockHandle, ...] | None:
        """The cell's blocks, with one user more. None if it is not known."""
        cell = self._cells.get(key)
        if cell is None:
            return None
        self.pool.share(cell.blocks)
        return cell.blocks

    def n_known(self, keys: Sequence[PrefixKey]) -> int:
        """How many of these keys are known, up to the first that is not."""
        return next((place for place, key in enumerate(keys) if key not in self._cells), len(keys))

    def touch(self, keys: Sequence[PrefixKey]) -> None:
        """Mark a chain as most recently used. Its last cell goes first, since it is worth nothing without the
        others."""
        for key in reversed(keys):
            if key in self._cells:
                self._cells.move_to_end(key)

    def forget(self, model: ModelId) -> None:
        """Forget a model's cells: the next model of that name may have other weights."""
        for key in [key for key, cell in self._cells.items() if cell.model == model]:
            self.pool.let_go(self._cells.pop(key).blocks)

    def forget_idle(self) -> None:
        """Forget all cells that no request uses."""
        while self._let_one_go():
            pass

    @property
    def blocks(self) -> Iterable[BlockHandle]:
        """All blocks that the index keeps."""
        return (block for cell in self._cells.values() for block in cell.blocks)

    def _let_one_go(self) -> bool:
        """Let the least recently used cell go that has an idle block. Cells in use on the way to it count as
        used just now. False if there is none."""
        for _ in range(len(self._cells) if self.pool.idle_bytes else 0):
            key, cell = next(iter(self._cells.items()))
            if self.pool.has_idle(cell.blocks):
                del self._cells[key]
                self.pool.let_go(cell.blocks)
                return True
            self._cells.move_to_end(key)
        return False
