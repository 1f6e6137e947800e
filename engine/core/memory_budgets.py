"""Default memory budgets of a device, by its kind and by how much memory it has.

Servers and simulated pools both use these, so that a plan never promises what a default server refuses.
"""

from dataclasses import dataclass
from typing import Literal

DeviceKind = Literal["cpu", "cuda"]

CPU_ARENA_BYTES = 2 << 30
GPU_ARENA_SHARE = 0.85
"""Share of a GPU's free memory. The rest is for kernels and for what steps allocate while they run."""

HOST_CACHE_BYTES = 4 << 30
HOST_KV_BYTES = 1 << 30
"""Used for a virtual device; the minimum for a GPU."""

GPU_HOST_CACHE_SHARE = 0.5
GPU_HOST_KV_SHARE = 0.1
"""Share of the available host memory when a server with a GPU starts."""

SMALLEST_SLAB_BYTES = 16 << 20
LARGEST_SLAB_BYTES = 256_000_000
"""At this size the largest KV block in the catalogue of architectures (12.5 MiB, llama2-13b) fills 92% of a
slab."""

SLABS_IN_ARENA = 256
BLOCKS_IN_SLAB = 16
"""Alignment wastes up to one block per slab: with this many blocks at least 15/16 of a slab are usable."""

LEAST_SLABS_IN_ARENA = 16
LEAST_SLABS_ON_HOST = 8
"""A slab holds blocks of one shape, so this many shapes can be on a device, or paged out, at the same
time."""

PREFILL_CHUNK_TOKENS: dict[DeviceKind, int] = {"cpu": 512, "cuda": 2048}
"""On an H100 a chunk of 512 tokens is launch-bound (13 ms of products, 15 ms of launches); one of 2048 is
not."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """Memory budgets in bytes."""

    arena_bytes: int
    host_cache_bytes: int
    host_kv_bytes: int


def default_budgets(kind: DeviceKind, free_bytes: int | None, host_bytes: int | None) -> Budgets:
    """Budgets of a server's device.

    `free_bytes` is the free device memory, or None if the device has no memory of its own. `host_bytes` is
    the available host memory, or None if the system does not say.
    """
    arena_bytes = CPU_ARENA_BYTES if free_bytes is None else int(GPU_ARENA_SHARE * free_bytes)
    if kind == "cpu" or host_bytes is None:
        return Budgets(arena_bytes, HOST_CACHE_BYTES, HOST_KV_BYTES)
    return Budgets(
        arena_bytes,
        max(HOST_CACHE_BYTES, int(GPU_HOST_CACHE_SHARE * host_bytes)),
        max(HOST_KV_BYTES, int(GPU_HOST_KV_SHARE * host_bytes)),
    )


def default_slab_bytes(arena_bytes: int, host_kv_bytes: int, largest_block_bytes: int = 0) -> int:
    """Default size of a slab: a small part of the arena, but large compared with a block.

    `largest_block_bytes` is the largest known KV block. A slab holds at least two of those, the minimum with
    which a model can be served.
    """
    by_arena = min(arena_bytes // SLABS_IN_ARENA, LARGEST_SLAB_BYTES)
    wanted = max(by_arena, SMALLEST_SLAB_BYTES, BLOCKS_IN_SLAB * largest_block_bytes)
    room = min(arena_bytes // LEAST_SLABS_IN_ARENA, host_kv_bytes // LEAST_SLABS_ON_HOST)
    return max(min(wanted, room), 2 * largest_block_bytes, 1)
