"""Default memory budgets of a device, by its kind and by how much memory it has.

Servers and simulated pools both use these, so that a plan never promises what a default server refuses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

DeviceKind = Literal["cpu", "cuda"]

CPU_ARENA_BYTES = 2 << 30
GPU_ARENA_SHARE = 0.85
"""Share of a GPU's free memory. The rest is for kernels and for what steps allocate while they run."""

HOST_CACHE_BYTES = 4 << 30
HOST_KV_BYTES = 1 << 30
"""Used for a virtual device; the minimum for a GPU. KV for each device."""

GPU_HOST_CACHE_SHARE = 0.5
GPU_HOST_KV_SHARE = 0.1
MOST_HOST_KV_SHARE = 0.3
"""Shares of the available host memory when a server with GPUs starts: for weights, for the paged-out KV of
each GPU, and most for that of all."""

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

CPU_PROMPT_CELL_TOKENS = 128
"""Cells of prompts on a CPU, where they cost nothing: requests share KV in units of them. A GPU computes a
cell in a pass of its own, so that there a cell is a whole chunk."""


def prompt_cell_tokens(kind: DeviceKind, prefill_chunk_tokens: int) -> int:
    """The cells of prompts in chunks of this many tokens."""
    divides = kind == "cpu" and prefill_chunk_tokens % CPU_PROMPT_CELL_TOKENS == 0
    return CPU_PROMPT_CELL_TOKENS if divides else prefill_chunk_tokens


@dataclass(frozen=True, slots=True)
class HostBudgets:
    """Host memory of all devices together, in bytes: for weights, and for paged-out KV cache."""

    cache_bytes: int
    kv_bytes: int


def default_arena_bytes(free_bytes: int | None) -> int:
    """Arena of a device with `free_bytes` of free memory; None if it has no memory of its own."""
    return CPU_ARENA_BYTES if free_bytes is None else int(GPU_ARENA_SHARE * free_bytes)


def default_host_budgets(kinds: Sequence[DeviceKind], host_bytes: int | None) -> HostBudgets:
    """Host memory of a server with devices of these kinds. `host_bytes` is what is available, or None if the
    system does not say."""
    n_gpus = sum(kind == "cuda" for kind in kinds)
    least = HostBudgets(HOST_CACHE_BYTES, len(kinds) * HOST_KV_BYTES)
    if not n_gpus or host_bytes is None:
        return least
    kv_share = min(n_gpus * GPU_HOST_KV_SHARE, MOST_HOST_KV_SHARE)
    return HostBudgets(
        max(least.cache_bytes, int(GPU_HOST_CACHE_SHARE * host_bytes)),
        max(least.kv_bytes, int(kv_share * host_bytes)),
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
