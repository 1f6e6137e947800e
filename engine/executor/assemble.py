"""Puts the parts of a worker together: an instance, a device, the models on it, and the engine over them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from tokenmux.core.facts import FIRST_INSTANCE, DeviceFacts, HostFacts, InstanceId
from tokenmux.core.memory_budgets import DeviceKind
from tokenmux.core.request import DEFAULT_LEVEL, RequestId, ServiceLevel
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.device.cpu import CpuDevice
from tokenmux.device.cuda.device import CudaDevice
from tokenmux.device.cuda.gpu import TorchGpu
from tokenmux.executor.engine import Engine
from tokenmux.executor.loop import EngineLoop
from tokenmux.executor.model_host import ModelHost
from tokenmux.executor.monotonic_clock import MonotonicClock
from tokenmux.executor.request_content import Content
from tokenmux.executor.warming import Warmer, compile_in_a_child
from tokenmux.messages.reports import Report
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.policy.registry import make_policy

PagedKv = Literal["exact", "int8"]


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """Everything that a worker needs to start."""

    device: DeviceFacts
    host: HostFacts
    policy: str = "slack"
    """A name of `tokenmux.scheduler.policy.registry`."""
    kind: DeviceKind = "cpu"
    paged_kv: PagedKv = "exact"
    """How the CUDA device pages KV; other devices page exactly."""
    service: ServiceLevel = DEFAULT_LEVEL
    """The pool's own level, the default of requests."""
    instance: InstanceId = FIRST_INSTANCE
    """The origin of its reports."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A worker that is ready for `EngineLoop.run(engine, clock)`."""

    engine: Engine
    instance: Instance
    clock: MonotonicClock


@contextmanager
def assemble(config: WorkerSetup, loop: EngineLoop, emit: Callable[[list[Report]], None]) -> Iterator[Parts]:
    """Build the parts. On leaving, the device's threads end and its memory is freed.

    Raises ConfigError if there is no device of that kind, DoesNotFit if its memory is too small.
    """
    clock = MonotonicClock()
    contents: dict[RequestId, Content] = {}
    instance = Instance(
        config.device,
        HostCache(config.host.cache_bytes),
        make_policy(config.policy),
        RooflineCost(config.device, config.host),
        service=config.service,
    )
    device: CpuDevice | CudaDevice
    if config.kind == "cuda":
        gpu, paged_int8 = TorchGpu(), config.paged_kv == "int8"
        warmer = Warmer(compile_in_a_child(gpu.capability, paged_int8=paged_int8))
        host = ModelHost(instance, clock, contents, warmer)
        kv_dtype = host.kv_dtype if paged_int8 else None
        device = CudaDevice(config.device, instance.ledger, clock, loop, host, gpu, kv_dtype=kv_dtype)
    else:
        host = ModelHost(instance, clock, contents)
        device = CpuDevice(config.device, instance.ledger, clock, loop, host)
    engine = Engine(instance, device, clock, host, emit, contents)
    try:
        yield Parts(engine, instance, clock)
    finally:
        device.close()
