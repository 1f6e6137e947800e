"""What crosses the seam between the front and a worker: plain, serialisable values in both directions.

The front owns text: chat templates, tokenizers, stop strings, detokenization. A worker owns token ids. In-process and
across processes the same values travel.

    front ── Submit, Cancel, Pause, Resume, Register, Unregister, Load, Unload, Pin, Resize, AskTrace, Shutdown ──▶ worker
    front ◀── Tokens, Finished, RequestState, WorkerStatus, WorkerUse, Traced, Acknowledged, Alive, Broken ── worker
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.core.request import FinishReason, Request, RequestId

GREEDY_BELOW = 1e-5
"""A temperature below this is greedy, as in vLLM: logits divided by less may overflow, and a draw would take the likeliest anyway."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. Temperature 0 is greedy. The draw is a pure function of (seed, position)."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True, slots=True)
class Submit:
    """An accepted request with its content. `delivered` are tokens that the client already has (recovery)."""

    request: Request
    prompt: tuple[int, ...]
    sampling: Sampling
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    delivered: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request now and free what it holds; answered by `Finished`."""

    request: RequestId
    reason: FinishReason = FinishReason.CANCELLED


@dataclass(frozen=True, slots=True)
class Pause:
    """The client does not read: the request stops being runnable, and its deadlines stop."""

    request: RequestId


@dataclass(frozen=True, slots=True)
class Resume:
    """The client reads again."""

    request: RequestId


@dataclass(frozen=True, slots=True)
class Register:
    """Make a model known to the worker. `path` is the folder of its catalogue entry."""

    facts: ModelFacts
    path: str


@dataclass(frozen=True, slots=True)
class Unregister:
    """Forget a model. Its live requests fail; the front has refused new ones before."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Load:
    """Ask that a model be made resident although nobody waits for it."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Unload:
    """Ask that a model leave the device; its requests, if any, are paged out and bring it back in their turn."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Pin:
    """Keep a model resident (or no longer, with `pinned=False`)."""

    model: ModelId
    pinned: bool


@dataclass(frozen=True, slots=True)
class Resize:
    """Give the arena another size, once everything in it has left; requests go on afterwards. Answered when that is done."""

    arena_bytes: int


@dataclass(frozen=True, slots=True)
class AskTrace:
    """Hand over what is remembered of the last `last_s` seconds; answered by `Traced` with the same ticket."""

    ticket: int
    last_s: float


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Stop the worker once it has answered; live requests are handed back as they are."""


ToWorker = (
    Submit
    | Cancel
    | Pause
    | Resume
    | Register
    | Unregister
    | Load
    | Unload
    | Pin
    | Resize
    | AskTrace
    | Shutdown
)


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of a request, the first of them at index `index` of its output."""

    request: RequestId
    index: int
    token_ids: tuple[int, ...]
    at_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The one end of a request. `detail` says why when the reason is FAILED; `kind` names the error's class in `tokenmux.core.errors`."""

    request: RequestId
    reason: FinishReason
    at_s: float
    detail: str = ""
    kind: str = ""


class RequestPhase(Enum):
    """Where a request is, as its client is told."""

    QUEUED = "queued"
    LOADING = "loading"
    RUNNING = "running"
    PAGED_OUT = "paged_out"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class RequestState:
    """A change of a request's phase: queued with the number of requests before it, loading with the share done."""

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


class ModelStatus(NamedTuple):
    """What the worker knows of one model at a moment. A tuple, since many are made: twice as fast as a dataclass."""

    model: ModelId
    residency: Residency
    pinned: bool
    n_queued: int
    n_running: int
    n_paged_out: int
    n_swaps: int
    swap_bytes: int
    swap_s: float
    swap_exposed_s: float
    n_tokens: int
    n_tokens_on_time: int
    n_prompt_tokens: int
    compute_s: float
    load_error: str = ""
    """Why its weights could not be brought from disk the last time."""
    unload_asked: bool = False
    """An operator wants it off the device, which it has not left yet."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What the worker knows of itself: sent on every change that a person would want to see, at most five a second."""

    at_s: float
    device: str
    arena_bytes: int
    weight_bytes: int
    kv_bytes: int
    host_cache_bytes: int
    host_cache_used_bytes: int
    host_kv_bytes: int
    host_kv_used_bytes: int
    compute_busy_s: float
    copy_in_busy_s: float
    copy_out_busy_s: float
    fetch_busy_s: float
    n_steps: int
    n_discards: int
    running_model: ModelId | None
    models: tuple[ModelStatus, ...]


@dataclass(frozen=True, slots=True)
class Durations:
    """A histogram: how many durations lie in each interval between the bounds of `tokenmux.scheduler.metrics.histogram`."""

    counts: tuple[int, ...]
    total_s: float


@dataclass(frozen=True, slots=True)
class Service:
    """How a model or a tenant was served; the counters of `tokenmux.scheduler.metrics.counters.ServiceCounters` at a moment."""

    n_requests: int
    n_requests_on_time: int
    n_requests_failed: int
    n_prompt_tokens: int
    n_tokens: int
    n_tokens_on_time: int
    n_attained: int
    attained: float
    gpu_s: float
    ttft: Durations
    tpot: Durations
    gaps: Durations


@dataclass(frozen=True, slots=True)
class ModelUse:
    """One model's service, and how often it was swapped in for which reason."""

    model: ModelId
    service: Service
    swaps: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class WorkerUse:
    """Who used the worker since it began: those models and tenants whose counters moved since the last such message.

    Sent at most once a second. `work_s` and `model_work_s` as in `tokenmux.scheduler.metrics.counters.Metrics`.
    """

    at_s: float
    work_s: float
    model_work_s: float
    n_models_used: int
    models: tuple[ModelUse, ...]
    tenants: tuple[tuple[str, Service], ...]


class Span(NamedTuple):
    """Something that lasted: an operation on a channel (`track` is its name in small letters) or a `request`."""

    instance: int
    track: str
    name: str
    start_s: float
    end_s: float
    details: Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Traced:
    """Answer to `AskTrace`: what ended within that time, in the order of the ends."""

    ticket: int
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Answer to `Register`, `Unregister`, `Load`, `Unload` and `Pin`, and to `Resize`, which is about no model.

    Empty `error` means done (or, for `Load`, begun). `kind` is the name of the error's class in `tokenmux.core.errors`.
    """

    model: ModelId | None
    error: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Alive:
    """The worker's loop has come round: sent once a second, the first when it can be sent to.

    `silent_s`, if not zero: what it does next may take so long, and it says nothing meanwhile.
    """

    silent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Broken:
    """The worker cannot go on; its requests may be submitted elsewhere with what was delivered."""

    detail: str


FromWorker = (
    Tokens | Finished | RequestState | WorkerStatus | WorkerUse | Traced | Acknowledged | Alive | Broken
)
