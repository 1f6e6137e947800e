"""Cells of prompts by their keys: the KV blocks that requests with the same beginning share.

There is one index for an instance's arena, and one for the host KV. It *keeps* its cells
(`tokenmux.scheduler.memory.slabs`): requests come and go as their users, and cells without users are evicted
as soon as anything else needs the room.
"""

from collections.abc import Collection, Sequence

from tokenmux.core.errors import IntegrityError
from tokenmux.core.facts import ModelId
from tokenmux.core.handles import BlockHandle
from tokenmux.core.prefix import PrefixKey
from tokenmux.scheduler.memory.slab import Cell
from tokenmux.scheduler.memory.slabs import SlabPool


class PrefixIndex:
    """Finds the cells of `pool` by their keys.

    >>> from tokenmux.scheduler.memory.arena import Arena
    >>> pool = SlabPool(Arena(1024), slab_bytes=256)
    >>> index, key = PrefixIndex(pool), PrefixKey(b"the first two blocks")
    >>> blocks = pool.allocate(block_bytes=16, n=2)
    >>> index.keep(Cell(key, ModelId("m"), blocks))
    >>> pool.free(blocks)  # the request has ended
    >>> index.share(key) == tuple(blocks), len(index)
    (True, 1)
    """

    def __init__(self, pool: SlabPool) -> None:
        self.pool = pool
        pool.on_evicted = self._on_evicted
        self._cells: dict[PrefixKey, Cell] = {}

    def __len__(self) -> int:
        return len(self._cells)

    def __contains__(self, key: PrefixKey) -> bool:
        return key in self._cells

    @property
    def cells(self) -> Collection[Cell]:
        """All cells that the index keeps."""
        return self._cells.values()

    def keep(self, cell: Cell) -> None:
        """Keep a cell whose KV is complete and will not be written again. Its blocks must have a user."""
        if cell.key in self._cells:
            raise IntegrityError("prefix index: a cell is kept twice")
        self.pool.keep(cell)
        self._cells[cell.key] = cell

    def share(self, key: PrefixKey) -> tuple[BlockHandle, ...] | None:
        """The cell's blocks, with one user more. None if it is not known."""
        cell = self._cells.get(key)
        if cell is None:
            return None
        self.pool.share(cell)
        return cell.blocks

    def n_known(self, keys: Sequence[PrefixKey]) -> int:
        """How many of these keys are known, up to the first that is not."""
        return next((place for place, key in enumerate(keys) if key not in self._cells), len(keys))

    def touch(self, keys: Sequence[PrefixKey]) -> None:
        """Mark a chain as most recently used. Its last cell goes first, since it is worth nothing without the
        others."""
        for key in reversed(keys):
            cell = self._cells.get(key)
            if cell is not None:
                self.pool.touch(cell)

    def forget(self, model: ModelId) -> None:
        """Forget a model's cells: the next model of that name may have other weights."""
        for cell in [cell for cell in self._cells.values() if cell.model == model]:
            del self._cells[cell.key]
            self.pool.let_go(cell)

    def _on_evicted(self, cell: Cell) -> None:
        del self._cells[cell.key]
