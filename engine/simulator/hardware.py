"""Accelerators of which a simulated pool can be built: makers' data sheets, and assumptions about the server
around them."""

from dataclasses import dataclass

from tokenmux.core.errors import NotFound
from tokenmux.core.facts import DeviceFacts
from tokenmux.core.memory_budgets import PREFILL_CHUNK_TOKENS, default_slab_bytes

GB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class DataSheet:
    """Makers' data sheets: memory, memory bandwidth, dense 16-bit arithmetic, board power."""

    name: str
    memory_bytes: int
    memory_bytes_per_s: float
    flops_per_s: float
    watts: float
    idle_watts: float
    dollars_per_hour: float
    """A round rental price; operators replace it by their own."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        DataSheet("A10", 24 * GB, 0.600e12, 125e12, 150, 20, 0.8),
        DataSheet("A100", 80 * GB, 2.039e12, 312e12, 400, 55, 1.8),
        DataSheet("H20", 96 * GB, 4.000e12, 148e12, 400, 60, 1.6),
        DataSheet("H800", 80 * GB, 3.350e12, 989e12, 700, 70, 2.8),
        DataSheet("H100", 80 * GB, 3.350e12, 989e12, 700, 70, 2.8),
    )
}

HOST_COPY_BYTES_PER_S = 16e9
"""Host to device: the paper's setting. PCIe 5 x16 measures two to three times as much."""

DISK_BYTES_PER_S = 5e9
"""One NVMe drive read in sequence."""

HOST_KV_BYTES_PER_DEVICE = 64 * GB
"""Host memory for paged-out KV cache, per device."""

DEVICES_PER_HOST = 8

CACHE_BYTES_PER_HOST = 2000 * GB - DEVICES_PER_HOST * HOST_KV_BYTES_PER_DEVICE
"""Host memory for weights, per host: the paper's machines have 2 TB for eight devices."""

CUT_TOKENS = 128
"""Simulated devices may compute a prompt in pieces of this many tokens, as vLLM's chunked prefill does: the
step times are vLLM's. On a GPU of ours a prompt up to a chunk is a pass of its own."""

USABLE = 0.9
"""Share of device memory for the arena. The rest is for activations and the runtime (vLLM's default
share)."""


def gpu(name: str) -> DataSheet:
    if name not in GPUS:
        raise NotFound(f"no hardware profile {name}; there are {', '.join(GPUS)}")
    return GPUS[name]


def instance_facts(
    gpu: DataSheet,
    n_devices: int = 1,
    copy_bytes_per_s: float = HOST_COPY_BYTES_PER_S,
    host_kv_bytes: int = HOST_KV_BYTES_PER_DEVICE,
    usable: float = USABLE,
    largest_block_bytes: int = 0,
    cut_tokens: int = CUT_TOKENS,
) -> DeviceFacts:
    """One instance of `n_devices` such devices in a tensor-parallel group: memory, speeds and links add up.

    `largest_block_bytes` is the size of the largest KV block of the models to be served. A prompt may be cut
    at multiples of `cut_tokens`.
    """
    arena_bytes = int(n_devices * gpu.memory_bytes * usable)
    return DeviceFacts(
        name=gpu.name if n_devices == 1 else f"{gpu.name}x{n_devices}",
        arena_bytes=arena_bytes,
        host_kv_bytes=n_devices * host_kv_bytes,
        copy_in_bytes_per_s=n_devices * copy_bytes_per_s,
        copy_out_bytes_per_s=n_devices * copy_bytes_per_s,
        memory_bytes_per_s=n_devices * gpu.memory_bytes_per_s,
        flops_per_s=n_devices * gpu.flops_per_s,
        slab_bytes=default_slab_bytes(arena_bytes, n_devices * host_kv_bytes, largest_block_bytes),
        prefill_chunk_tokens=PREFILL_CHUNK_TOKENS["cuda"],
        prompt_cut_tokens=cut_tokens,
    )
