"""What a copy channel puts on its stream: work that falls into chunks, and the buffers of a chunk in flight.

    Copies    tensors, by the copy engines: small ones together in a chunk, large ones cut
    Blocks    KV blocks that lie anywhere, by a kernel (`paging.py`)

It knows neither operations nor their order. The caller reuses a `Slot` only when the chunk that last used it
is done.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from tokenmux.core.plan import Channel
from tokenmux.device.cuda.gpu import Gpu

CHUNK_BYTES = 16 << 20
"""Chunk of a copy through page-locked buffers: at 50 GB/s a third of a millisecond, long against the
microseconds of an event."""

LOCKED_CHUNK_BYTES = 64 << 20
"""Chunk of a copy that the device makes by itself: it takes 1.3 ms until a superseded load stops. Each chunk
wakes a thread that takes 50 to 100 us of the interpreter from steps that run at the time: 900 times for 15 GB
in chunks of 16 MiB, 225 times in these."""

CHUNKS_IN_FLIGHT = 2
"""One is copied while the next is prepared."""

MAX_BLOCKS = 4096
"""Most blocks that one launch copies: 64 KiB of offsets."""

_OFFSETS_BYTES = 2 * 8 * MAX_BLOCKS

Landing = Callable[[], None]
"""What the host has to do once a chunk is done."""


def nothing() -> None: ...


class Slot:
    """The buffers of one chunk in flight on a channel: page-locked bytes, made when first needed, and
    offsets of blocks."""

    def __init__(self, gpu: Gpu, channel: Channel, chunk_bytes: int) -> None:
        self.gpu = gpu
        self.channel = channel
        self._chunk_bytes = chunk_bytes
        self._locked: torch.Tensor | None = None
        self._offsets_on_host = gpu.allocate_locked(_OFFSETS_BYTES)
        self._offsets = gpu.allocate(_OFFSETS_BYTES)

    @property
    def locked(self) -> torch.Tensor:
        if self._locked is None:
            self._locked = self.gpu.allocate_locked(self._chunk_bytes)
        return self._locked

    def offsets(self, to: torch.Tensor, come_from: torch.Tensor) -> torch.Tensor:
        """Both in device memory, `[2, block]`, valid when the stream gets there."""
        offsets = torch.stack((to, come_from))
        size = offsets.numel() * offsets.element_size()
        self._offsets_on_host[:size].view(torch.int64).copy_(offsets.view(-1))
        self.gpu.copy(self.channel, (self._offsets[:size], self._offsets_on_host[:size]))
        return self._offsets[:size].view(torch.int64).view(2, -1)

    def memory(self) -> Iterator[torch.Tensor]:
        """All memory that has to be released."""
        yield self._offsets
        yield self._offsets_on_host
        if self._locked is not None:
            yield self._locked


class Work(Protocol):
    """Bytes to be copied between device and host, or on the device."""

    @property
    def n_bytes(self) -> int: ...

    @property
    def staged(self) -> bool:
        """True if its host memory is not page-locked, so that it passes through the page-locked bytes of
        slots."""
        ...

    def chunks(self, n_bytes: int) -> Iterator["Work"]:
        """The same work in order, in parts of at most `n_bytes`."""
        ...

    def give(self, slot: Slot) -> Landing:
        """Put all of it on the slot's stream. It must fit the slot."""
        ...


class Copy(NamedTuple):
    """`uint8` tensors of equal size."""

    target: torch.Tensor
    source: torch.Tensor

    @property
    def n_bytes(self) -> int:
        return self.target.numel()

    def part(self, start: int, end: int) -> "Copy":
        return Copy(self.target[start:end], self.source[start:end])


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies by the copy engines, one after another."""

    copies: tuple[Copy, ...]
    staged: bool = False

    @property
    def n_bytes(self) -> int:
        return sum(copy.n_bytes for copy in self.copies)

    def chunks(self, n_bytes: int) -> Iterator["Copies"]:
        """Cut large copies, and gather small ones uncut: a slice costs more than a copy."""
        gathered: list[Copy] = []
        room = n_bytes
        for copy in self.copies:
            size = copy.n_bytes
            if size < room:
                gathered.append(copy)
                room -= size
                continue
            start = 0
            while start < size:
                end = min(start + room, size)
                gathered.append(copy if end - start == size else copy.part(start, end))
                room -= end - start
                start = end
                if not room:
                    yield Copies(tuple(gathered), self.staged)
                    gathered, room = [], n_bytes
        if gathered:
            yield Copies(tuple(gathered), self.staged)

    def give(self, slot: Slot) -> Landing:
        if not self.staged:
            slot.gpu.copy(slot.channel, *self.copies)
            return nothing
        to_empty: list[Copy] = []
        filled = 0
        for copy in self.copies:
            locked = slot.locked[filled : filled + copy.n_bytes]
            filled += copy.n_bytes
            if slot.channel is Channel.COPY_IN:
                locked.copy_(copy.source)
                slot.gpu.copy(slot.channel, (copy.target, locked))
            else:
                slot.gpu.copy(slot.channel, (locked, copy.source))
                to_empty.append(Copy(copy.target, locked))

        def land() -> None:
            for copy in to_empty:
                copy.target.copy_(copy.source)

        return land
