"""Memory that we own: anonymous pages by address, touched once, given back to the system when closed."""

import ctypes
import mmap
import re
from pathlib import Path

import torch


class Memory:
    """`n_bytes` of page-aligned memory. `touch` writes every page, so that no copy into it ever meets a page fault."""

    def __init__(self, n_bytes: int, *, touch: bool) -> None:
        self.buffer = mmap.mmap(-1, max(n_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.buffer.madvise(mmap.MADV_HUGEPAGE)
        self._exported = (ctypes.c_char * len(self.buffer)).from_buffer(self.buffer)
        self.address = ctypes.addressof(self._exported)
        if touch:
            ctypes.memset(self.address, 0, len(self.buffer))

    def as_tensor(self) -> torch.Tensor:
        """All of it as `uint8`."""
        return torch.frombuffer(self.buffer, dtype=torch.uint8)

    def close(self) -> None:
        """Give the pages back, now and not when the last view of them is gone. Nothing may read them any more."""
        del self._exported
        self.buffer.madvise(mmap.MADV_DONTNEED)


def available_bytes() -> int | None:
    """What Linux says can be taken without swapping; None where it does not say."""
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) << 10 if found else None
