"""How much memory this machine can still give, asked before it is taken: Linux grants more than it has, and
kills a process later, whichever it likes."""

import re
from pathlib import Path

from tokenmux.core.errors import DoesNotFit
from tokenmux.core.sizes import show_size


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
