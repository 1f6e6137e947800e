"""How the blocks of one request are paged: by the copy engines, or by a kernel where their copies would be small.

A copy engine takes a run of blocks that are neighbours on both sides as one copy, and loses a fixed time with each
(`kernels/kv_pack/choice.py`). The kernel takes all blocks of a chunk in one launch, wherever they lie on either side:

    arena       ....[ block A ]......[ block C ]..[ block B ]....
                        |   offsets: (where, from where) of each
    host KV     [ block A ]....[ block C ][ block B ]..........     page-locked, so that the device reaches it

Where host memory is not page-locked, the host's side of the launch is the slot's page-locked bytes, filled or emptied by the
channel's thread.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from tokenmux.engine.core.plan import Channel
from tokenmux.engine.device.chunks import MAX_BLOCKS, Copies, Copy, Landing, Slot, Work, nothing
from tokenmux.engine.device.spans import PagingSpan
from tokenmux.engine.memory.ledger import Ledger, Transfer
from tokenmux.kernels.kv_pack.choice import PageMethod, page_method
from tokenmux.kernels.layout import OFFSET_ALIGNMENT


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Blocks of one size, copied by a kernel. `on_device[i]` and `on_host[i]` are indices in blocks of that size."""

    arena: torch.Tensor
    host: torch.Tensor
    on_device: torch.Tensor
    on_host: torch.Tensor
    block_bytes: int
    staged: bool

    @property
    def n_bytes(self) -> int:
        return len(self.on_device) * self.block_bytes

    def chunks(self, n_bytes: int) -> Iterator["Blocks"]:
        n = min(n_bytes // self.block_bytes, MAX_BLOCKS)
        for start in range(0, len(self.on_device), n):
            part = slice(start, start + n)
            yield Blocks(
                self.arena, self.host, self.on_device[part], self.on_host[part], self.block_bytes, self.staged
            )

    def give(self, slot: Slot) -> Landing:
        if not self.staged:
            self._launch(slot, self.host, self.on_host)
            return nothing
        locked = slot.locked[: self.n_bytes]
        rows = locked.view(-1, self.block_bytes)
        n_host = self.host.numel() // self.block_bytes
        host = self.host[: n_host * self.block_bytes].view(n_host, self.block_bytes)
        if slot.channel is Channel.COPY_IN:
            torch.index_select(host, 0, self.on_host, out=rows)
        self._launch(slot, locked, torch.arange(len(rows)))
        if slot.channel is Channel.COPY_IN:
            return nothing

        def land() -> None:
            host.index_copy_(0, self.on_host, rows)

        return land

    def _launch(self, slot: Slot, host: torch.Tensor, places: torch.Tensor) -> None:
        if slot.channel is Channel.COPY_IN:
            slot.copy_blocks(self.arena, self.on_device, host, places, self.block_bytes)
        else:
            slot.copy_blocks(host, places, self.arena, self.on_device, self.block_bytes)


@dataclass(frozen=True, slots=True, eq=False)
class Pager:
    """Decides how a request's blocks are copied. `staged`: the memory for paged-out KV is not page-locked."""

    ledger: Ledger
    host: torch.Tensor
    staged: bool
    chunk_bytes: int
    bytes_per_s: Mapping[Channel, float]
    """Of the bus, in the direction of each copy channel."""
    copy_overhead_s: float

    def work(
        self,
        channel: Channel,
        arena: torch.Tensor,
        transfers: Sequence[Transfer],
        spans: Sequence[PagingSpan],
    ) -> Work:
        """The copies of one request's blocks, which are of one size; `spans` are the runs that they make up."""
        if not transfers:
            return Copies(())
        size = transfers[0].shape.block_bytes
        mean = sum(span.n_bytes for span in spans) / len(spans)
        method = page_method(mean, self.bytes_per_s[channel], self.copy_overhead_s)
        reachable = size % OFFSET_ALIGNMENT == 0 and size <= self.chunk_bytes
        if method is PageMethod.KERNEL and reachable:
            blocks, host_blocks = self.ledger.blocks, self.ledger.host_blocks
            on_device = torch.tensor([blocks.block_index(transfer.device) for transfer in transfers])
            on_host = torch.tensor([host_blocks.block_index(transfer.host) for transfer in transfers])
            return Blocks(arena, self.host, on_device, on_host, size, self.staged)
        copies = []
        for span in spans:
            there = arena[span.device : span.device + span.n_bytes]
            here = self.host[span.host : span.host + span.n_bytes]
            copies.append(Copy(there, here) if channel is Channel.COPY_IN else Copy(here, there))
        return Copies(tuple(copies), self.staged)
