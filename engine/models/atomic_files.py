"""Files that appear whole or not at all."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tokenmux.core.errors import BadCheckpoint, DoesNotFit, TokenmuxError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_file(path: Path, *, n_bytes: int = 0) -> Iterator[BinaryIO]:
    """Open a file for writing; it gets the name `path` if the block succeeds and is deleted if it does not.

    `n_bytes` is the expected size, if known. Raises DoesNotFit if the disk has no room for it, before or
    during writing, and TokenmuxError if it cannot be written for another reason.
    """
    folder = path.parent
    temporary: Path | None = None
    try:
        free = shutil.disk_usage(folder).free
        if free < n_bytes:
            raise _disk_full(path, n_bytes)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=folder)
        temporary = Path(name)
        with open(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
        temporary = None
        _sync_folder(folder)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise _disk_full(path, n_bytes) from error
        raise TokenmuxError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _disk_full(path: Path, n_bytes: int) -> DoesNotFit:
    free = shutil.disk_usage(path.parent).free
    return DoesNotFit(
        f"{path}: the disk is full ({n_bytes} bytes to write, {free} free); free some space or "
        "choose another folder"
    )


def check_regular(*paths: Path) -> None:
    """Raise BadCheckpoint if one of these is a pipe, a socket or a device: opening or reading it may never
    return.

    Links are followed. Missing or unreadable files are left to whatever opens them.
    """
    for path in paths:
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise BadCheckpoint(f"{path}: is a pipe, socket or device; put a regular file in its place")
