"""Default budgets: what they make of any memory, and that a default server serves every architecture that
a plan may promise."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.core.facts import DeviceFacts, HostFacts, KvShape
from tokenmux.core.memory_budgets import (
    LARGEST_SLAB_BYTES,
    HostBudgets,
    default_host_budgets,
    default_slab_bytes,
)
from tokenmux.executor.device_speeds import Speeds
from tokenmux.scheduler.memory.arena import Arena
from tokenmux.scheduler.memory.capacity import check_model
from tokenmux.scheduler.memory.slabs import SlabPool
from tokenmux.server.config import PoolConfig
from tokenmux.server.pool_setup import MeasuredDevice, node_setup
from tokenmux.simulator.architectures import ARCHITECTURES
from tokenmux.simulator.planner.named_models import parse_market
from tokenmux.simulator.scenario import Hardware

GB = 1_000_000_000
H100 = Speeds(50e9, 3e12, 900e12, "H100", free_bytes=80 * GB, host_bytes=500 * GB)
A10 = Speeds(25e9, 6e11, 120e12, "A10", free_bytes=23 * GB, host_bytes=128 * GB)


def served(speeds: Speeds, largest_block_bytes: int = 0, **device: object) -> tuple[DeviceFacts, HostFacts]:
    config = PoolConfig.model_validate({"device": {"kind": "cuda", **device}}, context=Path.cwd())
    setup = node_setup(config, [MeasuredDevice(config.device, speeds)], largest_block_bytes)
    return setup.devices[0].facts, setup.host


def usable_share(slab_bytes: int, shape: KvShape) -> float:
    return SlabPool(Arena(0), slab_bytes).capacity(shape.block_bytes) * shape.block_bytes / slab_bytes


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_default_server_serves_every_architecture_that_fits(name: str) -> None:
    """On 80 GB without knowing the model, and on 24 GB knowing it; with nine tenths of each slab in use."""
    model = ARCHITECTURES[name].facts(name)
    block_bytes = model.kv.block_bytes
    for device, host in (served(H100), served(H100, block_bytes), served(A10, block_bytes)):
        assert usable_share(device.slab_bytes, model.kv) >= 0.9
        if model.n_bytes < 0.95 * device.arena_bytes:
            check_model(device, host, model)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_plan_and_a_server_use_the_same_slabs_and_chunks(name: str) -> None:
    market = parse_market([name], {})
    planned = Hardware("H100", usable=0.85).instance(market)
    device, _ = served(H100, ARCHITECTURES[name].facts(name).kv.block_bytes)
    assert (device.arena_bytes, device.slab_bytes, device.prefill_chunk_tokens) == (
        planned.arena_bytes,
        planned.slab_bytes,
        planned.prefill_chunk_tokens,
    )


@given(
    arena_bytes=st.integers(0, 1 << 42),
    host_kv_bytes=st.integers(0, 1 << 42),
    largest_block_bytes=st.integers(0, 64 << 20),
)
def test_a_slab_is_small_against_its_arena_and_holds_two_blocks(
    arena_bytes: int, host_kv_bytes: int, largest_block_bytes: int
) -> None:
    slab_bytes = default_slab_bytes(arena_bytes, host_kv_bytes, largest_block_bytes)
    assert slab_bytes >= max(1, 2 * largest_block_bytes)
    if slab_bytes > 2 * largest_block_bytes and slab_bytes > 1:
        assert 16 * slab_bytes <= arena_bytes
        assert 8 * slab_bytes <= host_kv_bytes
    assert slab_bytes <= max(LARGEST_SLAB_BYTES, 16 * largest_block_bytes)


def test_what_the_operator_says_goes_before() -> None:
    device, host = served(H100, arena=GB, host_cache=2 * GB, host_kv=GB, slab=123_456, prefill_chunk_tokens=7)
    assert (device.arena_bytes, device.host_kv_bytes, host.cache_bytes) == (GB, GB, 2 * GB)
    assert (device.slab_bytes, device.prefill_chunk_tokens) == (123_456, 7)


def test_a_gpu_gets_as_much_of_the_host_as_there_is() -> None:
    assert default_host_budgets(["cuda"], 500 * GB).cache_bytes == 250 * GB
    assert default_host_budgets(["cuda"], GB) == HostBudgets(4 << 30, 1 << 30)
    assert default_host_budgets(["cuda"], None).kv_bytes == 1 << 30
    assert default_host_budgets(["cpu"], 500 * GB).cache_bytes == 4 << 30


def test_devices_share_the_host() -> None:
    two, eight = (default_host_budgets(["cuda"] * n, 500 * GB) for n in (2, 8))
    assert (two.cache_bytes, two.kv_bytes) == (250 * GB, 100 * GB)
    assert (eight.cache_bytes, eight.kv_bytes) == (250 * GB, 150 * GB), "the rest is for others"
    assert default_host_budgets(["cpu"] * 3, 500 * GB) == HostBudgets(4 << 30, 3 << 30)
    assert default_host_budgets(["cpu", "cuda"], 500 * GB) == HostBudgets(250 * GB, 50 * GB)
