"""Memory that tokenmux owns: anonymous pages by address, touched once, returned to the system when closed."""

import ctypes
import mmap
import re
from contextlib import suppress
from pathlib import Path

import torch


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
