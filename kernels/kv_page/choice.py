"""Chooses between a kernel and the copy engines for paging blocks, by the size of a copy.

A copy engine moves one block, or a run of adjacent ones, per copy. Each copy costs a fixed time besides its
bytes: Python submits it (slices, `copy_`, the driver's call), then the engine fetches its descriptor. So it
reaches

    share = transfer / (transfer + overhead)        transfer = bytes of a copy / bus bytes per second

of the bus. The kernel has no such overhead: one launch reads all the blocks, scattered or not, and stores 16
bytes per thread directly to pinned memory. But its programs, few as they are, occupy SMs that the step at the
same time could use; a copy engine does not. So the copy engines are better as soon as they are nearly as
fast. A block of a 7B model with 32 layers and 8 KV heads of 128 at 16 tokens is 2 MiB, 42 us at 50 GB/s: the
engines, at 81%. A block of a 135M model with 30 layers and 3 KV heads of 64 is 0.35 MiB at 16 tokens, 7 us:
they would reach 42%, so the kernel takes it.
"""

from __future__ import annotations

import enum

COPY_OVERHEAD_S = 10e-6
"""Fixed time of a copy. 6 us of it are Python's and were measured without a GPU (slices 4, `copy_` 2); the
driver's call and the descriptor are assumed until measured on a device. Callers may pass their own."""

ENOUGH = 0.8
"""Share of the bus above which leaving the SMs alone is worth more than the rest of the bandwidth."""


class PageMethod(enum.Enum):
    """How blocks get to the host and back."""

    COPY_ENGINE = "copy engine"
    KERNEL = "kernel"


def page_method(
    copy_bytes: float, bus_bytes_per_s: float, copy_overhead_s: float = COPY_OVERHEAD_S
) -> PageMethod:
    """The method for blocks that form copies of `copy_bytes` on average, over a bus of `bus_bytes_per_s`
    in one direction."""
    transfer_s = copy_bytes / bus_bytes_per_s
    share = transfer_s / (transfer_s + copy_overhead_s)
    return PageMethod.COPY_ENGINE if share >= ENOUGH else PageMethod.KERNEL
