"""Host memory for images, in pages that the device reads directly: each is page-locked once, when first
filled.

Page-locking takes at best a tenth of a second per GB, and during that time nothing on the host can launch on
a GPU. So it is done page by page and not for a whole image, with launches in between, and never undone while
the device runs: images come and go in pages that are already locked. The pages of an image need not be
adjacent, so that no hole is too small.

    memory file    [ page 0 ][ page 1 ][ page 2 ][ page 3 ] ...      grows by a run of pages at a time
    image          page 2, page 0, page 3                            its last page is mostly not filled
    its view       [ page 2 ][ page 0 ][ page 3 ]                    mapped again, for file reads
"""

import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

import torch

from tokenmux.device.cuda.gpu import Gpu

PAGE_BYTES = 16 << 20
"""Locking one takes two milliseconds, and each image wastes at most this much of the host."""

_RUN_PAGES = 64
"""Pages that are mapped together: the kernel allows a process some 65,000 mappings."""

_MAP_FAILED = ctypes.c_void_p(-1).value


@dataclass(slots=True, eq=False)
class _Page:
    bytes: torch.Tensor
    offset: int
    """Offset in the memory file."""
    locked: bool | None = None
    """None until it was filled and locking was tried."""


class PagedImage:
    """Room for `n_bytes`, in pages of a pool."""

    def __init__(self, pool: "HostPages", pages: Sequence[_Page], n_bytes: int) -> None:
        self._pool = pool
        self._pages = tuple(pages)
        self.n_bytes = n_bytes

    def view(self) -> memoryview:
        """All of it in one piece. The mapping lasts as long as anything refers to it."""
        return self._pool.map(self._pages)[: self.n_bytes]

    def lock(self) -> None:
        """Page-lock the pages that are not locked yet. Called once they are filled, so that no page is
        zeroed under the lock."""
        for page in self._pages:
            if page.locked is None:
                page.locked = self._pool.gpu.lock(page.bytes.data_ptr(), page.bytes.numel())

    @property
    def locked(self) -> bool:
        """True if the device can read all of it."""
        return all(page.locked for page in self._pages)

    def pieces(self) -> Iterator[torch.Tensor]:
        """Its bytes in order, as `uint8` tensors that each lie in one page."""
        left = self.n_bytes
        for page in self._pages:
            yield page.bytes[: min(left, len(page.bytes))]
            left -= len(page.bytes)

    def close(self) -> None:
        """Free the pages for the next image. No copy may read them any longer."""
        self._pool.give(self._pages)


class HostPages:
    """A pool of pages that grows on demand."""

    def __init__(self, gpu: Gpu, page_bytes: int = PAGE_BYTES) -> None:
        self.gpu = gpu
        self._page_bytes = page_bytes
        self._file = os.memfd_create("tokenmux-images", os.MFD_CLOEXEC)
        self._pages: list[_Page] = []
        self._free: list[_Page] = []
        # A read that was given up frees its pages when it returns, on its own thread.
        self._lock = Lock()

    def take(self, n_bytes: int) -> PagedImage:
        """Room for an image of `n_bytes`."""
        n = max(1, -(-n_bytes // self._page_bytes))
        with self._lock:
            while len(self._free) < n:
                self._grow()
            pages = [self._free.pop() for _ in range(n)]
        return PagedImage(self, pages, n_bytes)

    def give(self, pages: Sequence[_Page]) -> None:
        """Return pages. Those that are locked already are reused first."""
        with self._lock:
            self._free.extend(reversed(pages))

    def map(self, pages: Sequence[_Page]) -> memoryview:
        """Map the pages' memory again, one after another."""
        size = len(pages) * self._page_bytes
        reserved = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = ctypes.addressof(ctypes.c_char.from_buffer(reserved))
        for place, page in enumerate(pages):
            _map_over(address + place * self._page_bytes, self._page_bytes, self._file, page.offset)
        return memoryview(reserved)

    def unlock(self) -> None:
        """Unlock all pages, before `close`. Raises what the GPU raises."""
        for page in self._pages:
            if page.locked:
                self.gpu.unlock(page.bytes.data_ptr())
                page.locked = None

    def close(self) -> None:
        """Close the file; its memory is freed with the last view of it."""
        with self._lock:
            self._pages.clear()
            self._free.clear()
        os.close(self._file)

    def _grow(self) -> None:
        begin = len(self._pages) * self._page_bytes
        size = _RUN_PAGES * self._page_bytes
        os.ftruncate(self._file, begin + size)
        run = torch.frombuffer(
            mmap.mmap(self._file, size, flags=mmap.MAP_SHARED, offset=begin), dtype=torch.uint8
        )
        made = [
            _Page(run[start : start + self._page_bytes], begin + start)
            for start in range(0, size, self._page_bytes)
        ]
        self._pages += made
        self._free = [*reversed(made), *self._free]


_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_longlong,
]


def _map_over(address: int, n_bytes: int, file: int, offset: int) -> None:
    """Map a part of the file over what is mapped at that address. Raises OSError."""
    fixed = 0x10  # MAP_FIXED, which Python does not define
    mapped = _mmap(address, n_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | fixed, file, offset)
    if mapped == _MAP_FAILED:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
