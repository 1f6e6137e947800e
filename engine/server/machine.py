"""The devices that this machine can give: which GPUs it shows, how fast each device is, how much memory is
left."""

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

from tokenmux.core.errors import ConfigError, DoesNotFit, InvalidRequest, ProcessFailed
from tokenmux.core.memory_budgets import DeviceKind, default_arena_bytes
from tokenmux.core.sizes import show_size
from tokenmux.executor.device_speeds import Speeds, measure
from tokenmux.messages.setups import DeviceSetup, NodeSetup
from tokenmux.processes.available_memory import available_bytes as available_on_this_machine
from tokenmux.server.config import PoolConfig
from tokenmux.server.device_config import DeviceConfig
from tokenmux.server.front.device_source import WantedDevice
from tokenmux.server.pool_setup import MeasuredDevice, host_budgets, node_setup

MEASURED_AT_ONCE = 8
"""GPUs that are measured at the same time, each by a process of its own."""


@dataclass(frozen=True, slots=True)
class ShownGpu:
    """A GPU that CUDA shows to this process. `name` selects it in CUDA_VISIBLE_DEVICES."""

    name: str
    uuid: str


@cache
def shown_gpus() -> list[ShownGpu]:
    """The GPUs that CUDA shows, in its order. Raises ConfigError if there is none, ProcessFailed if they
    cannot be used."""
    from tokenmux.device.cuda.gpu import check_cuda  # imports torch

    check_cuda()
    # In a separate process, as CUDA then holds none of their memory here.
    script = (
        "import torch\nfor i in range(torch.cuda.device_count()): "
        "print(torch.cuda.get_device_properties(i).uuid)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ProcessFailed(f"the GPUs cannot be listed: {last}; look at `nvidia-smi`")
    uuids = done.stdout.decode().split()
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if len(names) < len(uuids):
        names = [str(index) for index in range(len(uuids))]
    return [
        ShownGpu(name, f"GPU-{uuid.removeprefix('GPU-')}") for name, uuid in zip(names, uuids, strict=False)
    ]


class Machine:
    """This machine; see the module. Implements `tokenmux.server.front.device_source.DeviceSource`."""

    def __init__(
        self,
        *,
        measured: Callable[[DeviceKind, str], Speeds] = measure,
        gpus: Callable[[], Sequence[ShownGpu]] = shown_gpus,
        available_bytes: Callable[[], int | None] = available_on_this_machine,
    ) -> None:
        """`measured` gives the speeds of a device, and may take seconds."""
        self._measured = measured
        self._gpus = gpus
        self._available_bytes = available_bytes
        self._virtual: Speeds | None = None

    def setup_of(self, config: PoolConfig, largest_block_bytes: int = 0) -> NodeSetup:
        """The node that the configuration describes, with its devices measured. May take seconds.

        Raises ConfigError if it names GPUs that are not there, one GPU twice, or more memory than there is.
        """
        wanted = self._assigned(config)
        kinds = dict.fromkeys((asked.kind, gpu) for _, asked, gpu in wanted)
        with ThreadPoolExecutor(MEASURED_AT_ONCE, thread_name_prefix="measure") as threads:
            speeds = dict(zip(kinds, threads.map(lambda device: self._speeds(*device), kinds), strict=True))
        measured = [
            MeasuredDevice(asked, speeds[asked.kind, gpu], gpu, place) for place, asked, gpu in wanted
        ]
        return node_setup(config, measured, largest_block_bytes, self._available_bytes())

    def check(self, config: PoolConfig) -> None:
        """Raise ConfigError as `setup_of`, as far as that is known before devices are measured."""
        unmeasured = [
            MeasuredDevice(asked, Speeds(1.0, 1.0, 1.0), gpu, place)
            for place, asked, gpu in self._assigned(config)
        ]
        host_budgets(config, unmeasured, self._available_bytes())

    def make(self, wanted: WantedDevice, present: Collection[DeviceSetup]) -> DeviceSetup:
        """A device to add to the present ones. May take seconds. Raises InvalidRequest, ConfigError, and
        DoesNotFit if there is too little memory."""
        first = next(iter(present))
        kind, paged_kv = wanted.kind or first.kind, wanted.paged_kv or first.paged_kv
        if (kind, paged_kv) != (first.kind, first.paged_kv):
            raise InvalidRequest(
                f"a device of kind {kind} with paged_kv {paged_kv} cannot join a pool of kind "
                f"{first.kind} with {first.paged_kv}: a request may go on at any device and keeps its tokens "
                "and KV; leave these out, or take another server",
                field="kind" if kind != first.kind else "paged_kv",
            )
        if kind == "cpu" and wanted.gpu:
            raise InvalidRequest("a device of kind cpu has no GPU: leave it out", field="gpu")
        gpu = self._free_gpu(wanted.gpu, present) if kind == "cuda" else ""
        speeds = self._speeds(kind, gpu)
        default_bytes = first.facts.arena_bytes if kind == "cpu" else default_arena_bytes(speeds.free_bytes)
        arena_bytes = wanted.arena_bytes or default_bytes
        self._check_arena(kind, arena_bytes, 0, speeds.free_bytes)
        facts = replace(
            first.facts,
            name=speeds.name,
            arena_bytes=arena_bytes,
            copy_in_bytes_per_s=speeds.copy_bytes_per_s,
            copy_out_bytes_per_s=speeds.copy_bytes_per_s,
            memory_bytes_per_s=speeds.read_bytes_per_s,
            flops_per_s=speeds.flops_per_s,
        )
        return DeviceSetup(facts, kind, gpu, paged_kv)

    def check_resize(self, device: DeviceSetup, arena_bytes: int) -> None:
        """Raise DoesNotFit if the machine has too little memory for the new size of a device's arena."""
        self._check_arena(device.kind, arena_bytes, device.facts.arena_bytes, None)

    def _check_arena(
        self, kind: DeviceKind, arena_bytes: int, present_bytes: int, free_bytes: int | None
    ) -> None:
        """Raise DoesNotFit if an arena of `arena_bytes` in place of one of `present_bytes` is more than there
        is. `free_bytes` is free on a GPU, if that is known."""
        left_bytes = self._available_bytes() if kind == "cpu" else free_bytes
        if left_bytes is not None and arena_bytes - present_bytes > left_bytes:
            where = "this machine" if kind == "cpu" else "the GPU"
            raise DoesNotFit(
                f"an arena of {show_size(arena_bytes)}: {where} has {show_size(left_bytes + present_bytes)} "
                "for it; ask for that or less"
            )

    def _speeds(self, kind: DeviceKind, gpu: str) -> Speeds:
        """The speeds of a device. All virtual devices are alike, and measured once, before they have
        work."""
        if kind == "cuda":
            return self._measured(kind, gpu)
        if self._virtual is None:
            self._virtual = self._measured(kind, "")
        return self._virtual

    def _assigned(self, config: PoolConfig) -> list[tuple[str, DeviceConfig, str]]:
        """Every device of the configuration with its place there and its GPU, if it has one."""
        entries = [(".".join(map(str, place)), entry) for place, entry in config.all_devices]
        shown = list(self._gpus()) if any(entry.kind == "cuda" for _, entry in entries) else []
        named: dict[str, str] = {}
        for place, entry in entries:
            if entry.gpu is not None:
                gpu = _found(entry.gpu, shown)
                if gpu is None:
                    raise ConfigError(f"{place}.gpu: {_no_such_gpu(entry.gpu, shown)}")
                if gpu in named.values():
                    raise ConfigError(f"{place}.gpu: {entry.gpu} is the GPU of another entry: name each once")
                named[place] = gpu
        free = [gpu.name for gpu in shown if gpu.name not in named.values()]
        n_wanted = sum(entry.count for _, entry in entries if entry.kind == "cuda" and entry.gpu is None)
        if n_wanted > len(free):
            raise ConfigError(
                f"{n_wanted + len(named)} devices of kind cuda, and CUDA shows {len(shown)} GPUs: take "
                "fewer, or look at CUDA_VISIBLE_DEVICES"
            )
        return [
            (place, entry, "" if entry.kind == "cpu" else named.get(place) or free.pop(0))
            for place, entry in entries
            for _ in range(entry.count)
        ]

    def _free_gpu(self, wanted: str, present: Collection[DeviceSetup]) -> str:
        """The name of the GPU that is `wanted`, or of the first that no present device has."""
        shown = list(self._gpus())
        taken = {device.gpu for device in present if device.kind == "cuda"}
        if wanted:
            gpu = _found(wanted, shown)
            if gpu is None:
                raise InvalidRequest(_no_such_gpu(wanted, shown), field="gpu")
            if gpu in taken:
                raise InvalidRequest(
                    f"GPU {wanted} is a device of the pool already: name another one", field="gpu"
                )
            return gpu
        free = [gpu.name for gpu in shown if gpu.name not in taken]
        if not free:
            raise DoesNotFit(
                f"CUDA shows {len(shown)} GPUs, and all of them are devices of the pool: look at "
                "CUDA_VISIBLE_DEVICES, or add a device of kind cpu"
            )
        return free[0]


def _found(wanted: str, shown: Sequence[ShownGpu]) -> str | None:
    """The name of the GPU with this index or UUID."""
    if wanted.isdigit():
        return shown[int(wanted)].name if int(wanted) < len(shown) else None
    return next((gpu.name for gpu in shown if wanted in (gpu.uuid, gpu.name)), None)


def _no_such_gpu(wanted: str, shown: Sequence[ShownGpu]) -> str:
    listed = ", ".join(f"{index} ({gpu.uuid})" for index, gpu in enumerate(shown))
    return f"there is no GPU {wanted}: CUDA shows {listed}; CUDA_VISIBLE_DEVICES decides which"
