"""From a configuration and measured speeds to the setup of a node. Pure: what the machine has is handed in
(`tokenmux.server.machine`)."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenmux.core.errors import ConfigError
from tokenmux.core.facts import DeviceFacts, HostFacts
from tokenmux.core.memory_budgets import (
    PREFILL_CHUNK_TOKENS,
    HostBudgets,
    default_arena_bytes,
    default_host_budgets,
    default_slab_bytes,
    prompt_cell_tokens,
)
from tokenmux.core.request import ServiceLevel
from tokenmux.core.sizes import show_size
from tokenmux.executor.device_speeds import Speeds
from tokenmux.messages.setups import DeviceSetup, NodeSetup
from tokenmux.server.config import PoolConfig
from tokenmux.server.device_config import DeviceConfig

FETCH_BYTES_PER_S = 1e9
"""First estimate of the rate at which weights are read from disk; the cost model corrects it from the first
fetch on."""


@dataclass(frozen=True, slots=True)
class MeasuredDevice:
    """One device of the configuration, from the entry called `place`. `gpu` as in `DeviceSetup`."""

    asked: DeviceConfig
    speeds: Speeds
    gpu: str = ""
    place: str = "device"

    @property
    def arena_bytes(self) -> int:
        return self.asked.arena or default_arena_bytes(self.speeds.free_bytes)


def node_setup(
    config: PoolConfig,
    measured: Sequence[MeasuredDevice],
    largest_block_bytes: int = 0,
    available_bytes: int | None = None,
) -> NodeSetup:
    """Budgets from the configuration, or the defaults of `tokenmux.core.memory_budgets`; speeds as measured.

    `largest_block_bytes` is the size of the largest KV block of the models to be served, `available_bytes`
    the machine's memory, or None if it does not say. Raises ConfigError if the budgets exceed it.
    """
    host = host_budgets(config, measured, available_bytes)
    smallest = min(device.arena_bytes for device in measured)
    slab_bytes = default_slab_bytes(smallest, host.kv_bytes, largest_block_bytes)
    return NodeSetup(
        devices=tuple(_device_setup(device, host.kv_bytes, slab_bytes) for device in measured),
        host=HostFacts(host.cache_bytes, FETCH_BYTES_PER_S),
        host_kv_bytes=host.kv_bytes,
        policy=config.policy,
        prefix_cache=config.prefix_cache.enabled,
        joins_tenants=config.prefix_cache.across_tenants,
        service=level_of(config),
        silent_s=config.node.silent_s,
        max_restarts=config.node.max_restarts,
        restart_window_s=config.node.restart_window_s,
    )


def level_of(config: PoolConfig) -> ServiceLevel:
    """The service level of requests without one."""
    return ServiceLevel(config.service_level.ttft_s, config.service_level.tpot_s)


def host_budgets(
    config: PoolConfig, measured: Sequence[MeasuredDevice], available_bytes: int | None
) -> HostBudgets:
    """Host memory for all devices. Raises ConfigError if an arena, or all that is in host memory, is more
    than there is."""
    for device in measured:
        free_bytes = device.speeds.free_bytes
        if free_bytes is not None and device.arena_bytes > free_bytes:
            raise ConfigError(
                f"{device.place}.arena: {show_size(device.arena_bytes)}, and the GPU has "
                f"{show_size(free_bytes)} free: ask for that or less"
            )
    host_bytes = [device.speeds.host_bytes for device in measured if device.speeds.host_bytes is not None]
    default = default_host_budgets(
        [device.asked.kind for device in measured], min(host_bytes) if host_bytes else None
    )
    cache_bytes = config.host_cache or default.cache_bytes
    kv_bytes = config.host_kv or default.kv_bytes
    if available_bytes is None:
        return HostBudgets(cache_bytes, kv_bytes)
    virtual = [device.arena_bytes for device in measured if device.asked.kind == "cpu"]
    left_bytes = available_bytes - sum(virtual) - kv_bytes
    if left_bytes <= 0 or (config.host_cache and cache_bytes > left_bytes):
        budgets = {
            f"{len(virtual)} arenas" if len(virtual) > 1 else "the arena": sum(virtual),
            "paged-out KV (host.kv)": kv_bytes,
            "weights (host.cache)": config.host_cache or 0,
        }
        held = ", ".join(f"{show_size(n)} for {what}" for what, n in budgets.items() if n)
        raise ConfigError(
            f"the memory of this machine is too small: {held}, and it has {show_size(available_bytes)} "
            "available: lower one of them, or take fewer devices"
        )
    return HostBudgets(min(cache_bytes, left_bytes), kv_bytes)


def _device_setup(device: MeasuredDevice, host_kv_bytes: int, slab_bytes: int) -> DeviceSetup:
    asked, speeds = device.asked, device.speeds
    chunk_tokens = asked.prefill_chunk_tokens or PREFILL_CHUNK_TOKENS[asked.kind]
    facts = DeviceFacts(
        name=speeds.name,
        arena_bytes=device.arena_bytes,
        host_kv_bytes=host_kv_bytes,
        copy_in_bytes_per_s=speeds.copy_bytes_per_s,
        copy_out_bytes_per_s=speeds.copy_bytes_per_s,
        memory_bytes_per_s=speeds.read_bytes_per_s,
        flops_per_s=speeds.flops_per_s,
        slab_bytes=asked.slab or slab_bytes,
        prefill_chunk_tokens=chunk_tokens,
        prompt_cell_tokens=prompt_cell_tokens(asked.kind, chunk_tokens),
    )
    return DeviceSetup(facts, asked.kind, device.gpu, asked.paged_kv)
