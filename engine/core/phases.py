"""The phase of a request, and where a model's weights are."""

from dataclasses import dataclass
from enum import Enum

from tokenmux.core.request import RequestId


class RequestPhase(Enum):
    """The phase of a request, as its client is told."""

    QUEUED = "queued"
    LOADING = "loading"
    RUNNING = "running"
    PAGED_OUT = "paged_out"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """A request's phase changed: queued with the number of requests ahead of it, loading with the share
    done."""

    request: RequestId
    phase: RequestPhase
    position: int = 0
    progress: float = 0.0


class Residency(Enum):
    """Where a model's weights are, from far to near."""

    DISK = "disk"
    FETCHING = "fetching"
    HOST = "host"
    LOADING = "loading"
    RESIDENT = "resident"


class DeviceState(Enum):
    """What the pool does with a device."""

    STARTING = "starting"
    """Its executor is being started. Its requests wait, or go elsewhere."""
    SERVING = "serving"
    DRAINING = "draining"
    """Nothing is placed on it, and its requests move away."""
    DRAINED = "drained"
    OUT = "out"
    """Its executor broke again and again: it is tried again later."""
