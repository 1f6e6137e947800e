"""Reads JSON files from foreign folders. Every failure names its reason."""

import json
from pathlib import Path
from typing import Any

from tokenmux.core.errors import BadCheckpoint
from tokenmux.models.foreign_errors import first_line

LFS_POINTER = b"version https://git-lfs"


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises BadCheckpoint."""
    content = b""
    try:
        content = path.read_bytes()
        document = json.loads(content)
    except FileNotFoundError:
        raise BadCheckpoint(f"{path}: the file is missing") from None
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        if content.startswith(LFS_POINTER):
            raise lfs_pointer(path) from None
        raise BadCheckpoint(f"{path}: damaged ({_fault_of(error)})") from None
    if not isinstance(document, dict):
        raise BadCheckpoint(f"{path}: damaged (not an object)")
    return document


def lfs_pointer(path: Path) -> BadCheckpoint:
    """The refusal of a file that is what Git leaves instead of a large one."""
    return BadCheckpoint(f"{path}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")


def _fault_of(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if "set_int_max_str_digits" in str(error):
        return "a number has thousands of digits"
    return first_line(error)
