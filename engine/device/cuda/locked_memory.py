"""Host memory that the GPU copies from and to, page-locked in place if the system allows it.

Page-locking takes at best a tenth of a second per GB, and during that time nothing on the host can launch on
a GPU. So it is done in pieces, with launches in between, and for an image only once it was read: no page is
zeroed under the lock.
"""

from collections.abc import Iterator

import torch

from tokenmux.device.cuda.gpu import Gpu
from tokenmux.device.memory import SharedMemory

IMAGE_PIECE_BYTES = 16 << 20
"""Piece of an image: locking it takes two milliseconds."""

KV_PIECE_BYTES = 1 << 30
"""Piece of the memory for paged-out KV, which is locked before the first launch. Drivers refuse 512 GiB."""


class LockedMemory:
    """Shared memory, page-locked in pieces of `piece_bytes`, or not at all if the system refuses one."""

    def __init__(self, gpu: Gpu, memory: SharedMemory, piece_bytes: int) -> None:
        self._gpu = gpu
        self._piece_bytes = piece_bytes
        self._locked: list[int] = []
        self.bytes = memory.as_tensor()
        for start in range(0, memory.n_bytes, piece_bytes):
            if not gpu.lock(memory.address + start, min(piece_bytes, memory.n_bytes - start)):
                self._unlock()
                break
            self._locked.append(memory.address + start)
        self.locked = bool(self._locked)

    def pieces(self) -> Iterator[torch.Tensor]:
        """Its bytes in order, as `uint8` tensors that were each locked in one call."""
        for start in range(0, self.bytes.numel(), self._piece_bytes):
            yield self.bytes[start : start + self._piece_bytes]

    def close(self) -> None:
        """Unlock it. No copy of it is in flight. Raises what the GPU raises."""
        self._unlock()

    def _unlock(self) -> None:
        while self._locked:
            self._gpu.unlock(self._locked.pop())
