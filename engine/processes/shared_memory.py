"""Host memory that several processes map: anonymous, handed over as a file descriptor.

It vanishes with the last process that maps it or holds a descriptor of it, so that nothing is left behind,
however processes end.
"""

import mmap
import os

from tokenmux.core.errors import DoesNotFit
from tokenmux.core.sizes import show_size


def create(name: str, n_bytes: int) -> int:
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
    try:
        os.posix_fallocate(descriptor, 0, max(1, n_bytes))
    except OSError as error:
        raise _exhausted(n_bytes, error) from None


def map_shared(descriptor: int, n_bytes: int, *, populate: bool) -> mmap.mmap:
    """Map memory of another process, or of this one. With `populate`, no access meets a page fault later.
    Raises DoesNotFit if this process can map no more."""
    flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
    try:
        return mmap.mmap(descriptor, max(1, n_bytes), flags=flags)
    except (OSError, ValueError) as error:
        raise _exhausted(n_bytes, error) from None


def _exhausted(n_bytes: int, error: Exception) -> DoesNotFit:
    return DoesNotFit(
        f"{show_size(n_bytes)} of memory cannot be shared between processes ({error}): raise the limit of "
        "open files or of memory, or give the pool less"
    )
