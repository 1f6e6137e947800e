"""Host memory by address: anonymous pages of this process, and memory that the node owns and all its
executors map."""

import ctypes
import mmap
from contextlib import suppress

import torch

from tokenmux.processes.shared_memory import map_shared


class Memory:
    """`n_bytes` of page-aligned memory. `touch` writes every page, so that no copy into it ever meets a
    page fault."""

    def __init__(self, n_bytes: int, *, touch: bool) -> None:
        self.buffer = mmap.mmap(-1, max(n_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # kernels without transparent huge pages do not know this advice
            self.buffer.madvise(mmap.MADV_HUGEPAGE)
        self._exported = (ctypes.c_char * len(self.buffer)).from_buffer(self.buffer)
        self.address = ctypes.addressof(self._exported)
        if touch:
            ctypes.memset(self.address, 0, len(self.buffer))

    def as_tensor(self) -> torch.Tensor:
        """All of it as a `uint8` tensor."""
        return torch.frombuffer(self.buffer, dtype=torch.uint8)

    def close(self) -> None:
        """Free the pages now, even if there are views of them. Nothing may read them any longer."""
        del self._exported
        self.buffer.madvise(mmap.MADV_DONTNEED)


class SharedMemory:
    """`n_bytes` of memory behind a descriptor, which stays the caller's, mapped without page faults to come.
    Raises DoesNotFit.

    It is unmapped with the last view of it.
    """

    def __init__(self, descriptor: int, n_bytes: int) -> None:
        self.buffer = map_shared(descriptor, n_bytes, populate=True)
        self._exported = (ctypes.c_char * len(self.buffer)).from_buffer(self.buffer)
        self.address = ctypes.addressof(self._exported)
        self.n_bytes = n_bytes

    def view(self) -> memoryview:
        """All of it, to be read and written."""
        return memoryview(self.buffer)[: self.n_bytes]

    def as_tensor(self) -> torch.Tensor:
        """All of it as a `uint8` tensor."""
        return torch.frombuffer(self.buffer, dtype=torch.uint8, count=self.n_bytes)

    def close(self) -> None:
        """Do nothing: it is unmapped with the last view of it."""
