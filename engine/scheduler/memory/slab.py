"""One slab with its blocks, and the cells that lie in slabs: plain state, which
`tokenmux.scheduler.memory.slabs` changes.
"""

from collections.abc import Sequence

from tokenmux.core.facts import ModelId
from tokenmux.core.handles import BlockHandle, ExtentHandle
from tokenmux.core.prefix import PrefixKey

INDEX_BITS = 24
INDEX_MASK = (1 << INDEX_BITS) - 1
"""The lower bits of a block's handle are its place in the slab, the others the slab's extent."""


class Slab:
    """A slot of the arena that is given to blocks of one size. A block is free, has one user, or belongs to a
    cell, which has any number of users."""

    __slots__ = ("block_bytes", "capacity", "extent", "free", "idle", "n_used", "own")

    def __init__(self, extent: ExtentHandle, block_bytes: int, capacity: int) -> None:
        self.extent = extent
        self.block_bytes = block_bytes
        self.capacity = capacity
        self.free = list(range(capacity - 1, -1, -1))
        self.own: set[int] = set()
        """Blocks with one user that belong to no cell."""
        self.n_used = 0
        """Number of blocks with users: its own, and those of cells in use."""
        self.idle: dict[Cell, None] = {}
        """Cells without users that have blocks here, the longest idle first."""


class Cell:
    """KV of one cell of a prompt: blocks that come and go together, and have the same users."""

    __slots__ = ("blocks", "is_kept", "key", "model", "n_users", "parts")

    def __init__(self, key: PrefixKey, model: ModelId, blocks: Sequence[BlockHandle]) -> None:
        self.key = key
        self.model = model
        self.blocks = tuple(blocks)
        self.n_users = 1
        self.is_kept = True
        """True until it is let go."""
        self.parts: list[tuple[Slab, list[int]]] = []
        """Its blocks by slab, as places there."""

    @property
    def n_bytes(self) -> int:
        return len(self.blocks) * self.parts[0][0].block_bytes
