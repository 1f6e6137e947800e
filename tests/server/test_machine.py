"""What a machine gives to the devices of a configuration, and to those that operators add."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenmux.core.errors import ConfigError, DoesNotFit, InvalidRequest, ProcessFailed, TokenmuxError
from tokenmux.core.memory_budgets import DeviceKind
from tokenmux.executor.device_speeds import Speeds, read_measured
from tokenmux.messages.setups import DeviceSetup
from tokenmux.server.config import PoolConfig
from tokenmux.server.front.device_source import WantedDevice
from tokenmux.server.machine import Machine, ShownGpu, shown_gpus

GIB = 1 << 30
GPUS = (ShownGpu("4", "GPU-aa"), ShownGpu("5", "GPU-bb"), ShownGpu("GPU-cc", "GPU-cc"))
"""As with CUDA_VISIBLE_DEVICES=4,5,GPU-cc."""


class Measured:
    """Speeds that tell which device they are of."""

    def __init__(self) -> None:
        self.asked: list[tuple[DeviceKind, str]] = []

    def __call__(self, kind: DeviceKind, gpu: str) -> Speeds:
        self.asked.append((kind, gpu))
        speed = float(len(gpu) + 1)
        free_bytes = None if kind == "cpu" else 80 * GIB
        return Speeds(speed, speed, speed, f"{kind} {gpu}", free_bytes, free_bytes and 400 * GIB)


def machine(
    available_bytes: int | None = 500 * GIB, gpus: Sequence[ShownGpu] = GPUS
) -> tuple[Machine, Measured]:
    measured = Measured()
    made = Machine(measured=measured, gpus=lambda: gpus, available_bytes=lambda: available_bytes)
    return made, measured


def config(**sections: Any) -> PoolConfig:
    return PoolConfig.model_validate(sections, context=Path.cwd())


def fault(wanted: PoolConfig, available_bytes: int | None = 500 * GIB) -> str:
    """What is wrong with it, which is known before anything is measured."""
    here, _ = machine(available_bytes)
    with pytest.raises(ConfigError) as caught:
        here.setup_of(wanted)
    with pytest.raises(ConfigError) as early:
        here.check(wanted)
    assert str(early.value) == str(caught.value)
    return str(caught.value)


def test_each_device_gets_a_gpu_and_each_is_measured_once() -> None:
    here, measured = machine()
    setup = here.setup_of(config(devices=[{"kind": "cuda", "count": 2}, {"kind": "cuda", "gpu": 1}]))
    kinds = [(device.kind, device.gpu, device.facts.name) for device in setup.devices]
    assert kinds == [("cuda", "4", "cuda 4"), ("cuda", "GPU-cc", "cuda GPU-cc"), ("cuda", "5", "cuda 5")]
    assert sorted(measured.asked) == [("cuda", "4"), ("cuda", "5"), ("cuda", "GPU-cc")]
    assert setup.devices[1].facts.flops_per_s == 7.0
    assert {device.facts.arena_bytes for device in setup.devices} == {int(0.85 * 80 * GIB)}


def test_virtual_devices_are_measured_once() -> None:
    here, measured = machine()
    setup = here.setup_of(config(devices=[{"count": 3, "arena": GIB}]))
    assert [device.facts.name for device in setup.devices] == ["cpu "] * 3
    assert measured.asked == [("cpu", "")]


def test_a_gpu_is_named_by_index_or_uuid_among_those_that_are_shown() -> None:
    here, _ = machine()
    for name, gpu in (("0", "4"), (2, "GPU-cc"), ("GPU-aa", "4"), ("GPU-cc", "GPU-cc")):
        (device,) = here.setup_of(config(device={"kind": "cuda", "gpu": name})).devices
        assert device.gpu == gpu


def test_gpus_that_are_not_there_or_named_twice_are_told() -> None:
    assert fault(config(devices=[{"kind": "cuda", "gpu": 3}])) == (
        "devices.0.gpu: there is no GPU 3: CUDA shows 0 (GPU-aa), 1 (GPU-bb), 2 (GPU-cc); "
        "CUDA_VISIBLE_DEVICES decides which"
    )
    twice = config(devices=[{"kind": "cuda", "gpu": 0}, {"kind": "cuda", "gpu": "GPU-aa"}])
    assert "devices.1.gpu: GPU-aa is the GPU of another entry" in fault(twice)
    many = config(devices=[{"kind": "cuda", "count": 3}, {"kind": "cuda", "gpu": 0}])
    assert "4 devices of kind cuda, and CUDA shows 3 GPUs: take fewer" in fault(many)


def test_more_memory_than_there_is_is_told_with_what_asks_for_it() -> None:
    arenas = config(device={"count": 3, "arena": GIB}, host={"kv": GIB})
    assert fault(arenas, 4 * GIB) == (
        "the memory of this machine is too small: 3.0 GiB for 3 arenas, 1.0 GiB for paged-out KV (host.kv), "
        "and it has 4.0 GiB available: lower one of them, or take fewer devices"
    )
    cache = config(device={"arena": GIB, "host_cache": 3 * GIB, "host_kv": GIB})
    assert "3.0 GiB for weights (host.cache), and it has 4.0 GiB" in fault(cache, 4 * GIB)
    here, _ = machine(4 * GIB + 1)
    assert here.setup_of(arenas).host.cache_bytes == 1, "by default what is left"
    unknown, _ = machine(None)
    assert unknown.setup_of(cache).host.cache_bytes == 3 * GIB


def test_an_arena_larger_than_its_gpu_is_told() -> None:
    here, _ = machine()
    with pytest.raises(ConfigError, match=r"devices\.0\.arena: 90\.0 GiB, and the GPU has 80\.0 GiB free"):
        here.setup_of(config(devices=[{"kind": "cuda", "arena": 90 * GIB}]))


def test_devices_of_a_pool_have_slabs_of_one_size() -> None:
    """So that their KV finds room in the same host memory."""
    here, _ = machine()
    setup = here.setup_of(config(devices=[{"kind": "cuda", "arena": GIB}, {"kind": "cuda"}]))
    assert len({device.facts.slab_bytes for device in setup.devices}) == 1
    assert {device.facts.host_kv_bytes for device in setup.devices} == {setup.host_kv_bytes}
    assert setup.host_kv_bytes == 2 * int(0.1 * 400 * GIB)


# Devices that operators add


Pool = tuple[Machine, tuple[DeviceSetup, ...]]


@pytest.fixture
def virtual() -> Pool:
    here, _ = machine()
    return here, here.setup_of(config(devices=[{"arena": GIB, "prefill_chunk_tokens": 64}])).devices


@pytest.fixture
def gpus() -> Pool:
    here, _ = machine()
    wanted = {"kind": "cuda", "gpu": 1, "paged_kv": "int8", "prefill_chunk_tokens": 64}
    return here, here.setup_of(config(devices=[wanted])).devices


def test_an_added_device_is_like_the_others(virtual: Pool, gpus: Pool) -> None:
    here, present = virtual
    assert here.make(WantedDevice(), present) == present[0]
    assert here.make(WantedDevice("cpu", arena_bytes=2 * GIB), present).facts.arena_bytes == 2 * GIB
    here, present = gpus
    added = here.make(WantedDevice(), present)
    assert (added.gpu, added.facts.name, added.paged_kv) == ("4", "cuda 4", "int8"), "the first that is free"
    assert added.facts.slab_bytes == present[0].facts.slab_bytes
    assert added.facts.prefill_chunk_tokens == 64
    assert here.make(WantedDevice("cuda", gpu="2"), present).gpu == "GPU-cc"


@pytest.mark.parametrize(
    ("wanted", "kind", "says"),
    [
        (WantedDevice("cuda", gpu="1"), InvalidRequest, "GPU 1 is a device of the pool already"),
        (WantedDevice("cuda", gpu="GPU-bb"), InvalidRequest, "GPU GPU-bb is a device of the pool already"),
        (WantedDevice("cuda", gpu="7"), InvalidRequest, "there is no GPU 7: CUDA shows 0 (GPU-aa)"),
        (WantedDevice("cuda", paged_kv="exact"), InvalidRequest, "with paged_kv exact cannot join a pool"),
        (WantedDevice("cpu"), InvalidRequest, "cannot join a pool of kind cuda"),
        (WantedDevice("cuda", arena_bytes=81 * GIB), DoesNotFit, "the GPU has 80.0 GiB for it"),
    ],
)
def test_what_cannot_join_gpus(
    gpus: Pool, wanted: WantedDevice, kind: type[TokenmuxError], says: str
) -> None:
    here, present = gpus
    with pytest.raises(kind) as caught:
        here.make(wanted, present)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "kind", "says"),
    [
        (WantedDevice("cpu", gpu="0"), InvalidRequest, "a device of kind cpu has no GPU"),
        (WantedDevice(paged_kv="int8"), InvalidRequest, "with paged_kv int8 cannot join a pool"),
        (WantedDevice("cuda"), InvalidRequest, "cannot join a pool of kind cpu"),
        (WantedDevice("cpu", arena_bytes=501 * GIB), DoesNotFit, "this machine has 500.0 GiB for it"),
    ],
)
def test_what_cannot_join_virtual_devices(
    virtual: Pool, wanted: WantedDevice, kind: type[TokenmuxError], says: str
) -> None:
    here, present = virtual
    with pytest.raises(kind) as caught:
        here.make(wanted, present)
    assert says in str(caught.value)


def test_there_are_only_so_many_gpus(gpus: Pool) -> None:
    here, present = gpus
    for _ in range(2):
        present = (*present, here.make(WantedDevice("cuda"), present))
    with pytest.raises(DoesNotFit, match="CUDA shows 3 GPUs, and all of them are devices of the pool"):
        here.make(WantedDevice("cuda"), present)


def test_a_virtual_device_grows_by_what_is_available_and_a_gpu_knows_itself(
    virtual: Pool, gpus: Pool
) -> None:
    here, (device,) = virtual
    here.check_resize(device, 501 * GIB)
    with pytest.raises(DoesNotFit, match=r"this machine has 501\.0 GiB for it; ask for that or less"):
        here.check_resize(device, 502 * GIB)
    here, (device,) = gpus
    here.check_resize(device, 1 << 50)


# The real thing


def test_a_gpu_is_measured_where_only_it_can_be_seen() -> None:
    script = (
        "import os, json; print(json.dumps({'copy_bytes_per_s': 1.0, 'read_bytes_per_s': 1.0, "
        "'flops_per_s': 1.0, 'name': os.environ['CUDA_VISIBLE_DEVICES']}))"
    )
    assert read_measured("cuda", [sys.executable, "-c", script], "GPU-cc").name == "GPU-cc"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_machine_without_a_gpu_says_so() -> None:
    with pytest.raises((ConfigError, ProcessFailed), match="cuda needs"):
        shown_gpus()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_gpus_of_this_machine_have_names_and_uuids() -> None:
    assert len(shown_gpus()) == torch.cuda.device_count()
    assert all(gpu.uuid.startswith(("GPU-", "MIG-")) for gpu in shown_gpus())
