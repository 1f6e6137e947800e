"""The books of paged-out KV in host memory, shared by the instances of a host.

    table of a request on one instance ── park ──▶ parked under its id ── take ──▶ table on another instance

Nothing is copied on that way: the blocks stay where they are, and only their owner changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenmux.core.errors import IntegrityError
from tokenmux.core.facts import KvShape
from tokenmux.core.handles import BlockHandle
from tokenmux.core.request import RequestId
from tokenmux.scheduler.memory.arena import Arena, aligned
from tokenmux.scheduler.memory.kv_table import KvTable
from tokenmux.scheduler.memory.prefix_index import PrefixIndex
from tokenmux.scheduler.memory.slabs import SlabPool

Tables = Mapping[RequestId, KvTable]
"""The KV tables of one instance, by request."""


@dataclass(frozen=True, slots=True)
class ParkedKv:
    """KV of the first `n_tokens` tokens of a request that is between two instances."""

    shape: KvShape
    blocks: tuple[BlockHandle, ...]
    n_tokens: int


class HostKv:
    """Blocks of host memory, used by the requests of the instances that share them, or by parked ones, and
    kept by the index of prompts' beginnings."""

    def __init__(self, capacity: int, slab_bytes: int) -> None:
        self.arena = Arena(capacity)
        self.blocks = SlabPool(self.arena, aligned(slab_bytes))
        self.prefixes = PrefixIndex(self.blocks)
        self._parked: dict[RequestId, ParkedKv] = {}
        self._sharers: list[Tables] = []

    @property
    def parked(self) -> Mapping[RequestId, ParkedKv]:
        return self._parked

    def join(self, tables: Tables) -> None:
        """An instance with these tables shares the memory from now on."""
        self._sharers.append(tables)

    def leave(self, tables: Tables) -> None:
        """The instance with these tables no longer shares the memory. Raises IntegrityError if a request of
        it still has KV there."""
        if any(handle is not None for table in tables.values() for handle in table.host):
            raise IntegrityError("host KV: an instance leaves and keeps blocks")
        self._sharers = [others for others in self._sharers if others is not tables]

    def park(self, request: RequestId, kv: ParkedKv) -> None:
        """Keep a request's KV until its next instance takes it. Raises IntegrityError if there is some
        already."""
        if request in self._parked:
            raise IntegrityError(f"host KV: {request} is parked twice")
        self._parked[request] = kv

    def take(self, request: RequestId, shape: KvShape, n_tokens: int) -> list[BlockHandle]:
        """Hand over the blocks of the request's first `n_tokens` tokens, and free the rest of what is parked.
        None are handed over if they have another shape, or fewer tokens are parked."""
        kv = self._parked.pop(request)
        n_taken = shape.blocks_for(n_tokens) if kv.shape == shape and n_tokens <= kv.n_tokens else 0
        self.blocks.free(kv.blocks[n_taken:])
        return list(kv.blocks[:n_taken])

    def forget(self, request: RequestId) -> None:
        """Free what is parked of the request, if anything is."""
        kv = self._parked.pop(request, None)
        if kv is not None:
            self.blocks.free(kv.blocks)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every block has the users that it counts, over all instances."""
        self.arena.check_integrity()
        owned = [h for tables in self._sharers for t in tables.values() for h in t.host if h is not None]
        parked = (h for kv in self._parked.values() for h in kv.blocks)
        self.blocks.check_integrity([*owned, *parked], self.prefixes.cells)
        if set(self.blocks.extents) != set(self.arena.handles):
            raise IntegrityError("host KV: an extent has no owner")
