"""The KV blocks of one request, and whether each is on the device, on the host, or on both.

    tokens      0 ............ n_clean ............ n_computed ..... room of the last block
    host copy   [valid        ][stale or absent                              ]
    device      [block][block][ None = only on the host ][block][block]

KV only ever grows, so the host copy is valid for a prefix of `n_clean` tokens. The tokens computed since are
the dirty tail.

Blocks of a prompt's whole cells may be shared with other requests (`tokenmux.scheduler.memory.prefix_index`).
Nobody writes them: they end at or before `n_computed`, and steps write behind that.
"""

from tokenmux.core.facts import KvShape
from tokenmux.core.handles import BlockHandle
from tokenmux.core.prefix import Prefix


class KvTable:
    """The blocks of one request. Block `i` holds tokens `[i * block_size, (i + 1) * block_size)`."""

    __slots__ = ("device", "host", "n_clean", "n_computed", "n_missing", "n_shared", "prefix", "shape")

    def __init__(self, shape: KvShape, prefix: Prefix | None = None) -> None:
        """`prefix` tells which cells may be shared; None: none."""
        self.shape = shape
        self.prefix = prefix
        self.n_shared = 0
        """Number of leading tokens whose blocks others may have been given, or were given by others."""
        self.device: list[BlockHandle | None] = []
        self.host: list[BlockHandle | None] = []
        self.n_computed = 0
        self.n_clean = 0
        self.n_missing = 0

    @property
    def is_clean(self) -> bool:
        """True if the host has everything, so that the device copies may be dropped."""
        return self.n_clean >= self.n_computed

    @property
    def on_device(self) -> bool:
        return self.n_missing == 0

    def blocks_to_grow(self, n_tokens: int) -> int:
        """Number of additional device blocks needed for `n_tokens` tokens."""
        more = -(-n_tokens // self.shape.block_size) - len(self.device)
        return max(0, more)

    def grow(self, handles: list[BlockHandle]) -> None:
        self.device.extend(handles)
        self.host.extend([None] * len(handles))

    def missing(self) -> list[int]:
        """Indices of the blocks that are only on the host."""
        return [place for place, handle in enumerate(self.device) if handle is None]

    def dirty(self) -> list[int]:
        """Indices of the blocks that have tokens the host lacks."""
        return list(range(self.n_clean // self.shape.block_size, self.shape.blocks_for(self.n_computed)))

    def take_device(self) -> list[BlockHandle]:
        """Forget every device block; returns them for freeing. Blocks beyond `n_computed` cease to exist."""
        taken = [handle for handle in self.device if handle is not None]
        n_kept = self.shape.blocks_for(self.n_computed)
        self.device = [None] * n_kept
        del self.host[n_kept:]
        self.n_missing = n_kept
        return taken

    def take_host(self) -> list[BlockHandle]:
        """Forget every host block; returns them for freeing."""
        taken = [handle for handle in self.host if handle is not None]
        self.host = [None] * len(self.host)
        self.n_clean = 0
        return taken
