"""Memory budgets of a device for which the operator named none: by kind of device, and by how much memory
there is.

Servers and simulated pools both take them from here, so that a plan never promises what a default server
refuses.
"""

from dataclasses import dataclass
from typing import Literal

DeviceKind = Literal["cpu", "cuda"]

CPU_ARENA_BYTES = 2 << 30
GPU_ARENA_SHARE = 0.85
"""Of the memory that is free on a GPU; the rest is for what steps hold in between, and for kernels."""

HOST_CACHE_BYTES = 4 << 30
HOST_KV_BYTES = 1 << 30
"""For a virtual device, and the least for a GPU."""

GPU_HOST_CACHE_SHARE = 0.5
GPU_HOST_KV_SHARE = 0.1
"""Of the host memory that is available when a server with a GPU starts."""

SMALLEST_SLAB_BYTES = 16 << 20
LARGEST_SLAB_BYTES = 256_000_000
"""At this size the largest KV block in the catalogue of architectures (12.5 MiB, llama2-13b) fills 92% of a
slab."""

SLABS_IN_ARENA = 256
BLOCKS_IN_SLAB = 16
"""Alignment loses up to a block of each slab: this many leave at least 15/16 of it usable."""

LEAST_SLABS_IN_ARENA = 16
LEAST_SLABS_ON_HOST = 8
"""A slab holds blocks of one shape, so this many shapes can be on a device, or paged out, at the same
time."""

PREFILL_CHUNK_TOKENS: dict[DeviceKind, int] = {"cpu": 512, "cuda": 2048}
"""On an H100 a chunk of 512 tokens is launch-bound (13 ms of products, 15 ms of launches); one of 2048 is
not."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """All in bytes."""

    arena_bytes: int
    host_cache_bytes: int
    host_kv_bytes: int


def default_budgets(kind: DeviceKind, free_bytes: int | None, host_bytes: int | None) -> Budgets:
    """Budgets of a server's device: `free_bytes` of device memory are free (None: it has none of its own).

    `host_bytes` of host memory are available; None if the system does not say.
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
    """The size of a slab: a small part of the arena, large against `largest_block_bytes`, the largest known
    KV block.

    Never less than two of those blocks, which is the least that serves a model.
    """
    by_arena = min(arena_bytes // SLABS_IN_ARENA, LARGEST_SLAB_BYTES)
    wanted = max(by_arena, SMALLEST_SLAB_BYTES, BLOCKS_IN_SLAB * largest_block_bytes)
    room = min(arena_bytes // LEAST_SLABS_IN_ARENA, host_kv_bytes // LEAST_SLABS_ON_HOST)
    return max(min(wanted, room), 2 * largest_block_bytes, 1)
