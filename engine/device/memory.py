"""Host memory by address: anonymous pages of this process, and memory that the node owns and all its
executors map."""

import ctypes
import mmap
import re
from contextlib import suppress
from pathlib import Path

import torch

from tokenmux.core.errors import DoesNotFit
from tokenmux.core.sizes import show_size
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


def check_available(n_bytes: int) -> None:
    """Raise DoesNotFit if the system lacks `n_bytes` of memory: it would kill a process, and refuse none."""
    available = available_bytes()
    if available is not None and n_bytes > available:
        raise DoesNotFit(
            f"{show_size(n_bytes)} of memory cannot be allocated on this machine ({show_size(available)} are "
            "available): ask for less, or stop other programs here"
        )


def available_bytes() -> int | None:
    """Host memory available without swapping, within the limit of the container. None if Linux does not
    tell."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", _read(Path("/proc/meminfo")), re.MULTILINE)
    if found is None:
        return None
    limits = (_read(file).strip() for file in _CONTAINER_LIMITS)
    return min([int(found[1]) << 10, *(int(limit) for limit in limits if limit.isdigit())])


_CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Limits of control groups, version 2 and version 1."""


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
