"""What processes are told first: all that a node, or an executor, needs to start."""

from typing import Literal

from msgspec import Struct

from tokenmux.core.facts import DeviceFacts, HostFacts, InstanceId
from tokenmux.core.memory_budgets import DeviceKind
from tokenmux.core.request import DEFAULT_LEVEL, ServiceLevel

PagedKv = Literal["exact", "int8"]


class DeviceSetup(Struct, frozen=True, array_like=True):
    """One device of a pool. `gpu` is the index or UUID of a GPU, as CUDA_VISIBLE_DEVICES has it; empty for
    the first one, and for a virtual device."""

    facts: DeviceFacts
    kind: DeviceKind = "cpu"
    gpu: str = ""
    paged_kv: PagedKv = "exact"
    """How a CUDA device pages KV; other devices page exactly."""


class PresentDevices(Struct, frozen=True):
    """The devices with which a node starts, by number. Numbers below `n_numbered` have been used."""

    setups: dict[InstanceId, DeviceSetup]
    n_numbered: int


class NodeSetup(Struct, frozen=True, array_like=True):
    """A node and its devices. `host_kv_bytes` of host memory keep paged-out KV, for all devices together.

    `instances` are the numbers of the devices, in the same order; if it is empty, they are counted from 0.
    A node that replaces another has the devices of that moment: some were removed since, and numbers below
    `n_numbered` have been used."""

    devices: tuple[DeviceSetup, ...]
    host: HostFacts
    host_kv_bytes: int
    policy: str = "slack"
    """A name of `tokenmux.scheduler.policy.registry`."""
    service: ServiceLevel = DEFAULT_LEVEL
    """The pool's own level, the default of requests."""
    silent_s: float = 10.0
    """An executor that sends nothing for this long hangs, and is killed."""
    instances: tuple[InstanceId, ...] = ()
    n_numbered: int = 0
    prefix_cache: bool = False
    """True if requests with the same beginning share KV: those of one tenant, or with `joins_tenants` all."""
    joins_tenants: bool = False
    n_sharing: int = 0
    """How many devices share the machine's cores, which gives the number of threads of a step: as many as the
    pool began with, since other threads add up in another order, and a request may go on at any device. 0:
    as many as there are."""
    max_restarts: int = 3
    """This many executors of a device in a row that break within `restart_window_s` of their start are
    replaced at once. Then the device is out for a growing time."""
    restart_window_s: float = 60.0


class ExecutorSetup(Struct, frozen=True, array_like=True):
    """One device, for the process that carries its launches out. The descriptor of the memory for paged-out
    KV, of `host_kv_bytes`, comes with this message."""

    instance: InstanceId
    device: DeviceSetup
    host_kv_bytes: int
