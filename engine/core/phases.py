"""Where a request is on its way, and where the weights of a model are."""

from dataclasses import dataclass
from enum import Enum

from tokenmux.core.request import RequestId


class RequestPhase(Enum):
    """Where a request is, as its client is told."""

    QUEUED = "queued"
    LOADING = "loading"
    RUNNING = "running"
    PAGED_OUT = "paged_out"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """A change of a request's phase: queued with the number of requests before it, loading with the share
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
