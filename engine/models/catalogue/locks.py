"""Locks between the processes that share a catalogue (`flock`): they end with their process, however that
ends.

A folder's own lock says that somebody works in it or serves from it; it is taken on the folder itself.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until nobody else is in a block like this with the same folder. Raises OSError where locks do not
    work."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Claim:
    """A folder in use: others may use it too, nobody removes it."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError when the folder is gone, BlockingIOError when it is being removed."""
        self._handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(self._handle)
            raise

    def release(self) -> None:
        """Releasing twice changes nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def is_free(folder: Path) -> bool:
    """Whether no process holds a claim on the folder or works in it."""
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
