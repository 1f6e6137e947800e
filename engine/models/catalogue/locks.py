"""Locks between the processes that share a catalogue (`flock`). They end with their process, however it ends.

The lock on a folder itself says that a process works in it or serves from it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block with the same folder. Raises OSError if locks do not
    work here."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Claim:
    """Marks a folder as in use: other processes may use it too, but none may remove it."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError if the folder is gone, BlockingIOError if it is being removed."""
        self._handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(self._handle)
            raise

    def release(self) -> None:
        """Release the claim. Releasing twice has no effect."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def is_free(folder: Path) -> bool:
    """True if no process holds a claim on the folder or works in it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    with suppress(OSError):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        finally:
            os.close(handle)
    return False
