"""How long a device may take to allocate its memory, so that those who wait know when it hangs."""

FLOOR_S = 60.0
ALLOCATED_BYTES_PER_S = 100e6
"""Allocating an arena touches every page, which is slow if the system has to make room for it."""


def allocation_s(n_bytes: int) -> float:
    """At most this many seconds for `n_bytes`."""
    return FLOOR_S + n_bytes / ALLOCATED_BYTES_PER_S
