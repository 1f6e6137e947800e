"""Host memory that several processes map: anonymous, handed over as a file descriptor.

It vanishes with the last process that maps it or holds a descriptor of it, so that nothing is left behind,
however processes end.
"""

import errno
import mmap
import os
from contextlib import suppress

from tokenmux.core.errors import DoesNotFit
from tokenmux.core.sizes import show_size
from tokenmux.processes.available_memory import check_available

_MADV_POPULATE_WRITE = 23
"""Linux 5.14. Python does not define it."""


def create_shared(name: str, n_bytes: int) -> int:
    """Create memory of `n_bytes` and return its descriptor. Pages are allocated when they are first written.
    `name` is shown by `/proc`. Raises DoesNotFit if the system has no more descriptors or memory."""
    try:
        descriptor = os.memfd_create(f"tokenmux-{name}"[:200], os.MFD_CLOEXEC)
    except OSError as error:
        raise _exhausted(n_bytes, error) from None
    try:
        os.ftruncate(descriptor, max(1, n_bytes))
    except OSError as error:
        os.close(descriptor)
        raise _exhausted(n_bytes, error) from None
    return descriptor


def allocate(descriptor: int, n_bytes: int) -> None:
    """Allocate all pages now: a process that writes to memory that the system cannot provide is killed.
    Raises DoesNotFit."""
    check_available(n_bytes)
    try:
        os.posix_fallocate(descriptor, 0, max(1, n_bytes))
    except OSError as error:
        raise _exhausted(n_bytes, error) from None


def map_shared(descriptor: int, n_bytes: int, *, populate: bool) -> mmap.mmap:
    """Map memory of another process, or of this one. With `populate`, its pages are allocated if they are
    not, and no access meets a page fault later. Raises DoesNotFit if this process can map no more."""
    try:
        mapped = mmap.mmap(descriptor, max(1, n_bytes), flags=mmap.MAP_SHARED)
        if populate:
            _populate(mapped, descriptor)
    except (OSError, ValueError) as error:
        raise _exhausted(n_bytes, error) from None
    return mapped


def _populate(mapped: mmap.mmap, descriptor: int) -> None:
    # Before the pages are allocated: huge ones make a copy a tenth faster, if the system has them for shared
    # memory (/sys/kernel/mm/transparent_hugepage/shmem_enabled).
    with suppress(OSError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    try:
        mapped.madvise(_MADV_POPULATE_WRITE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        os.posix_fallocate(descriptor, 0, len(mapped))  # pages are then mapped at their first use


def _exhausted(n_bytes: int, error: Exception) -> DoesNotFit:
    return DoesNotFit(
        f"{show_size(n_bytes)} of memory cannot be shared between processes ({error}): raise the limit of "
        "open files or of memory, or give the pool less"
    )
