"""What operators and planners get from the client: plain frozen values, none of them tied to gRPC."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Residency(Enum):
    """Where a model's weights are. UNKNOWN: not reported yet."""

    DISK = "disk"
    FETCHING = "fetching"
    HOST = "host"
    LOADING = "loading"
    RESIDENT = "resident"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Durations:
    """A histogram: `counts[i]` durations up to `PoolStatus.duration_bounds_s[i]`, the last beyond all
    bounds."""

    counts: tuple[int, ...]
    total_s: float

    def percentile(self, share: float, bounds_s: Sequence[float]) -> float | None:
        """The bound that `share` of the durations does not exceed, the largest bound for those beyond it.
        None if there are none."""
        left = share * sum(self.counts)
        for i, count in enumerate(self.counts):
            left -= count
            if count and left <= 0:
                return bounds_s[min(i, len(bounds_s) - 1)]
        return None


@dataclass(frozen=True, slots=True)
class Service:
    """How a model or a tenant was served since the node started. `gpu_s` is in device seconds.

    `artifact_attainment` is the Aegaeon artifact's figure, which flatters.
    """

    n_requests: int
    n_requests_on_time: int
    n_requests_failed: int
    n_prompt_tokens: int
    n_tokens: int
    n_tokens_on_time: int
    artifact_attainment: float
    gpu_s: float
    ttft: Durations
    tpot: Durations
    gaps: Durations
    n_prefix_hits: int
    n_cached_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Tenant:
    """Usage of one tenant."""

    name: str
    service: Service


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the catalogue. Sizes in bytes, times in seconds; totals since the node started.
    `residency` is the nearest of all devices, and `instances` are those that hold its weights.

    Swaps are counted by reason. `first`: requests waited, and it had not been loaded before. `again`:
    requests waited, and it had been evicted. `operator`: no request waited, an operator asked. `ahead`: no
    request waited, the policy expected one.
    """

    name: str
    residency: Residency
    pinned: bool
    refusal: str
    weight_bytes: int
    kv_bytes_per_token: int
    n_parameters: int
    max_context: int
    vocab_size: int
    n_queued: int
    n_running: int
    n_paged_out: int
    n_tokens_overdue: int
    n_swaps: int
    swap_bytes: int
    swap_s: float
    swap_exposed_s: float
    n_prompt_tokens: int
    n_tokens: int
    n_tokens_on_time: int
    compute_s: float
    n_swaps_first: int
    n_swaps_again: int
    n_swaps_operator: int
    n_swaps_ahead: int
    instances: tuple[int, ...]
    service: Service


class OperationState(Enum):
    """Where an operation is. UNKNOWN: the server is newer than this client."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Operation:
    """Work on the server that goes on without its caller, such as registering `model`.

    `done` and `total` are of what it is `doing` (0 of 0: not known). If it failed, or was cancelled,
    `failure` has the reason for programs and `message` that for people.
    """

    name: str
    model: str
    state: OperationState
    doing: str
    done: int
    total: int
    elapsed_s: float
    failure: str
    message: str


class DeviceState(Enum):
    """What the pool does with a device. OUT: its process broke again and again, and is tried again later.
    UNKNOWN: a state that this client does not know."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    DRAINED = "drained"
    OUT = "out"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """One device, by its number `id`. Sizes in bytes, times in seconds. Compute rates from the difference of
    two statuses.

    `fault` says why its process broke the last time, if it does not serve, and `n_deaths` how often it did.
    """

    id: int
    device: str
    state: DeviceState
    fault: str
    n_deaths: int
    n_requests: int
    loading_model: str
    resident_models: tuple[str, ...]
    pinned_models: tuple[str, ...]
    arena_bytes: int
    weight_bytes: int
    kv_bytes: int
    compute_busy_s: float
    copy_in_busy_s: float
    copy_out_busy_s: float
    fetch_busy_s: float
    n_steps: int
    n_discards: int
    paged_in_bytes: int
    paged_out_bytes: int
    running_model: str
    work_s: float
    model_work_s: float


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The pool at one moment; without a node it has no instances. `at_s` is the time on the node's clock,
    host memory is what all devices share.

    `devices_saved` compares with one device for each model while it has requests, `devices_saved_dedicated`
    with one for each model requested within the last hour.
    """

    version: str
    uptime_s: float
    n_requests: int
    max_requests: int
    n_restarts: int
    instances: tuple[InstanceStatus, ...]
    models: tuple[Model, ...]
    tenants: tuple[Tenant, ...]
    duration_bounds_s: tuple[float, ...]
    devices_saved: float
    devices_saved_dedicated: float
    at_s: float
    host_cache_bytes: int
    host_cache_used_bytes: int
    host_kv_bytes: int
    host_kv_used_bytes: int
    work_s: float
    model_work_s: float
    n_models_used: int


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What a planner needs to know of a model."""

    name: str
    weight_bytes: int
    n_parameters: int
    max_context: int
    vocab_size: int
    n_layers: int
    n_kv_heads: int
    head_dim: int
    dtype_bytes: int


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request that the server has seen: lengths and times, never text. `arrival_s` counts from the start of
    recording. `hash_ids` stand for what its prompt begins with, `hash_tokens` tokens each, if the server has
    a prefix cache."""

    arrival_s: float
    model: str
    input_tokens: int
    output_tokens: int
    tenant: str
    ttft_s: float
    tpot_s: float
    weight: float
    hash_ids: tuple[int, ...] = ()
    hash_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PoolTrace:
    """Recent activity as a JSON document in Chrome's Trace Event Format; `seconds` is the time from its first
    operation to its last."""

    chrome_trace: str
    n_spans: int
    seconds: float
