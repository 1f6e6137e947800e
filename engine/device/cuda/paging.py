"""How the blocks of one request are paged: by the copy engines, or by a kernel if their copies would be
small.

A copy engine takes a run of blocks that are neighbours on both sides as one copy, and each copy costs a fixed
time (`kernels/kv_page/choice.py`). The kernel takes all blocks of a chunk in one launch, wherever they lie on
either side:

    arena       ....[ block A ]......[ block C ]..[ block B ]....
                        |   offsets: (target, source) of each
    host KV     [ block A ]....[ block C ][ block B ]..........     page-locked, so that the device reaches it

If the server is configured for int8, the kernel writes a record of codes and scales to the beginning of a
block's place on the host. The books still count whole blocks, so they need not know.

If host memory is not page-locked, the host side of the launch is the slot's page-locked buffer, filled or
emptied by the channel's thread.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from tokenmux.core.facts import KvShape
from tokenmux.core.plan import Channel
from tokenmux.device.cuda.chunks import MAX_BLOCKS, Copies, Copy, Landing, Slot, Work, nothing
from tokenmux.device.spans import PagingSpan, paging_spans
from tokenmux.kernels.kv_page.choice import PageMethod, page_method
from tokenmux.kernels.kv_page.quantised import record_bytes
from tokenmux.kernels.layout import OFFSET_ALIGNMENT, KVLayout
from tokenmux.messages.launches import PagedBlocks


@dataclass(frozen=True, slots=True)
class Int8:
    """How to read blocks that are to be quantised."""

    layout: KVLayout
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Blocks of one size, copied by a kernel. `on_device[i]` and `on_host[i]` are indices in units of that
    size."""

    arena: torch.Tensor
    host: torch.Tensor
    on_device: torch.Tensor
    on_host: torch.Tensor
    block_bytes: int
    staged: bool
    int8: Int8 | None = None

    @property
    def n_bytes(self) -> int:
        """Size as the books count it."""
        return len(self.on_device) * self.block_bytes

    @property
    def host_bytes(self) -> int:
        """Bytes of one block on the host."""
        return record_bytes(self.int8.layout) if self.int8 else self.block_bytes

    def chunks(self, n_bytes: int) -> Iterator["Blocks"]:
        n = min(n_bytes // self.block_bytes, MAX_BLOCKS)
        for start in range(0, len(self.on_device), n):
            part = slice(start, start + n)
            yield replace(self, on_device=self.on_device[part], on_host=self.on_host[part])

    def give(self, slot: Slot) -> Landing:
        if not self.staged:
            self._launch(slot, self.host, self.on_host * self.block_bytes)
            return nothing
        size, n = self.host_bytes, len(self.on_device)
        locked = slot.locked[: n * size]
        rows = locked.view(n, size)
        n_host = self.host.numel() // self.block_bytes
        host = self.host[: n_host * self.block_bytes].view(n_host, self.block_bytes)[:, :size]
        if slot.channel is Channel.COPY_IN:
            torch.index_select(host, 0, self.on_host, out=rows)
        self._launch(slot, locked, torch.arange(n) * size)
        if slot.channel is Channel.COPY_IN:
            return nothing

        def land() -> None:
            host.index_copy_(0, self.on_host, rows)

        return land

    def _launch(self, slot: Slot, host: torch.Tensor, here: torch.Tensor) -> None:
        """Launch the kernel; `here` is where the blocks are on the host, in bytes."""
        gpu, channel = slot.gpu, slot.channel
        there = self.on_device * self.block_bytes
        if self.int8:
            itemsize = self.int8.dtype.itemsize
            there //= itemsize
            arena = self.arena[: self.arena.numel() // itemsize * itemsize].view(self.int8.dtype)
            if channel is Channel.COPY_IN:
                gpu.dequantise_blocks(channel, arena, host, slot.offsets(there, here), self.int8.layout)
            else:
                gpu.quantise_blocks(channel, host, arena, slot.offsets(here, there), self.int8.layout)
        elif channel is Channel.COPY_IN:
            gpu.copy_blocks(channel, self.arena, host, slot.offsets(there, here), self.block_bytes)
        else:
            gpu.copy_blocks(channel, host, self.arena, slot.offsets(here, there), self.block_bytes)


@dataclass(frozen=True, slots=True, eq=False)
class Pager:
    """Decides how a request's blocks are copied. `staged` is true if the memory for paged-out KV is not
    page-locked."""

    host: torch.Tensor
    staged: bool
    chunk_bytes: int
    bytes_per_s: Mapping[Channel, float]
    """Bandwidth of the bus, in the direction of each copy channel."""
    copy_overhead_s: float
    lock_bytes: int
    """`host` was page-locked in pieces of this size: no copy may cross the end of one."""

    def work(
        self,
        channel: Channel,
        arena: torch.Tensor,
        blocks: PagedBlocks,
        shape: KvShape,
        int8: torch.dtype | None = None,
    ) -> Work:
        """The copies of one request's blocks. With `int8`, the dtype of their numbers, they are stored on the
        host in int8 if the kernel can take them."""
        if not blocks.device:
            return Copies(())
        size = shape.block_bytes
        spans = paging_spans(blocks, size)
        quantised = self._int8(int8, shape) if int8 else None
        if quantised or self._by_kernel(channel, size, spans):
            on_device, on_host = torch.tensor(blocks.device), torch.tensor(blocks.host)
            return Blocks(arena, self.host, on_device, on_host, size, self.staged, quantised)
        on_both = [
            (arena[device : device + n_bytes], self.host[host : host + n_bytes])
            for device, host, n_bytes in _within(spans, self.lock_bytes)
        ]
        if channel is Channel.COPY_IN:
            copies = [Copy(there, here) for there, here in on_both]
        else:
            copies = [Copy(here, there) for there, here in on_both]
        return Copies(tuple(copies), self.staged)

    def _by_kernel(self, channel: Channel, size: int, spans: Sequence[PagingSpan]) -> bool:
        mean = sum(span.n_bytes for span in spans) / len(spans)
        method = page_method(mean, self.bytes_per_s[channel], self.copy_overhead_s)
        fits = size % OFFSET_ALIGNMENT == 0 and size <= self.chunk_bytes
        return method is PageMethod.KERNEL and fits

    def _int8(self, dtype: torch.dtype, shape: KvShape) -> Int8 | None:
        """None for blocks that the kernel cannot take in either direction: what goes out exact comes back
        exact."""
        if shape.head_dim % OFFSET_ALIGNMENT or shape.block_bytes > self.chunk_bytes:
            return None
        layout = KVLayout(shape.n_layers, shape.n_kv_heads, shape.head_dim, shape.block_size)
        if record_bytes(layout) % OFFSET_ALIGNMENT:
            return None
        return Int8(layout, dtype)


def _within(spans: Sequence[PagingSpan], piece_bytes: int) -> Iterator[PagingSpan]:
    """The same bytes, in spans whose host side lies within one piece of `piece_bytes`."""
    for device, host, n_bytes in spans:
        start = 0
        while start < n_bytes:
            end = min(n_bytes, (host + start) // piece_bytes * piece_bytes + piece_bytes - host)
            yield PagingSpan(device + start, host + start, end - start)
            start = end
