"""Reports: what a node tells the front.

Two of them are for operators. `NodeStatus` is its state at one moment: made by `node/node_status.py`,
shown by `server/front/pool_status.py`. `NodeUse` is how models and tenants were served since it started:
made by `node/telemetry.py`, collected by `server/front/usage.py`.
"""

from collections.abc import Sequence

from msgspec import Struct

from tokenmux.core.errors import ErrorCode
from tokenmux.core.facts import InstanceId, ModelId, NodeId
from tokenmux.core.phases import DeviceState, PhaseChanged, Residency
from tokenmux.core.pooling import PooledRows
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.core.sampling import LogProbabilities
from tokenmux.core.span import Span
from tokenmux.messages.commands import Ticket
from tokenmux.scheduler.metrics.counter_table import Row


class Tokens(Struct, frozen=True, array_like=True, tag=True):
    """New tokens of a request, the first of them at index `index` of its output, with their log-probabilities
    if it asks for them. The first of a node also has `n_cached`: tokens of the prompt whose KV the prefix
    cache gave, so that the node never computed them for this request."""

    request: RequestId
    index: int
    token_ids: tuple[int, ...]
    at_s: float
    log_probabilities: tuple[LogProbabilities, ...] = ()
    n_cached: int = 0


class PromptTold(Struct, frozen=True, array_like=True, tag=True):
    """Log-probabilities of tokens of a request's prompt, the first of them at index `index` of the prompt.
    They come in order, and all before the first of `Tokens`."""

    request: RequestId
    index: int
    log_probabilities: tuple[LogProbabilities, ...]


class PromptPooled(Struct, frozen=True, array_like=True, tag=True):
    """A sum of hidden states of a request's prompt. Those of a request come in the order of their positions,
    without gaps, and all before `Finished`."""

    request: RequestId
    rows: PooledRows


class Finished(Struct, frozen=True, array_like=True, tag=True):
    """The end of a request; each request has exactly one. `detail` says why if it FAILED; `code` is the
    error's, if known. `n_cached` is as in `Tokens`, for a request that ended without a token."""

    request: RequestId
    reason: FinishReason
    at_s: float
    detail: str = ""
    code: ErrorCode | None = None
    n_cached: int = 0


class ModelStatus(Struct, frozen=True, array_like=True):
    """What the node knows of one model at a moment, over all devices. `residency` is the nearest, and
    `resident_on` the devices that hold its weights."""

    model: ModelId
    residency: Residency
    pinned: bool
    n_queued: int
    n_running: int
    n_paged_out: int
    n_tokens_overdue: int
    """Tokens of live requests that are due and not drawn."""
    counts: Row
    """The counters of `counters.MODEL_TABLE`."""
    load_error: str = ""
    """Why its weights could not be read from disk the last time."""
    unload_asked: bool = False
    """An operator wants it off the device, and it has not left yet."""
    resident_on: tuple[InstanceId, ...] = ()


class DeviceStatus(Struct, frozen=True, array_like=True):
    """What the node knows of one device at a moment."""

    instance: InstanceId
    device: str
    state: DeviceState
    arena_bytes: int
    weight_bytes: int
    kv_bytes: int
    counts: Row
    """The counters of `counters.INSTANCE_TABLE`."""
    running_model: ModelId | None
    loading_model: ModelId | None
    """The model whose weights are being copied to the device."""
    resident: tuple[ModelId, ...]
    n_requests: int
    """Live requests placed on it."""
    n_deaths: int
    """How often its executor broke and was replaced."""
    fault: str = ""
    """Why its executor broke the last time, if the device does not serve."""
    pinned: tuple[ModelId, ...] = ()
    """Models that are pinned to this device, also while they are on their way there."""


class NodeStatus(Struct, frozen=True, array_like=True, tag=True):
    """What the node knows of itself. Sent on every change that a person would want to see, at most five
    a second."""

    at_s: float
    host_cache_bytes: int
    host_cache_used_bytes: int
    host_kv_bytes: int
    host_kv_used_bytes: int
    n_models_used: int
    """Models requested within the last hour."""
    work_s: float
    """Time during which any model had unfinished requests, on any device."""
    model_work_s: float
    """The same time, once for each model with such requests."""
    devices: tuple[DeviceStatus, ...]
    """By instance. A device that was removed is missing."""
    models: tuple[ModelStatus, ...]


class NodeUse(Struct, frozen=True, array_like=True, tag=True):
    """How models and tenants were served: rows of `counters.SERVICE_TABLE`, of those whose counters moved
    since the last such report. Sent at most once a second."""

    at_s: float
    models: tuple[tuple[ModelId, Row], ...]
    tenants: tuple[tuple[str, Row], ...]


class Traced(Struct, frozen=True, array_like=True, tag=True):
    """Answer to `AskTrace`: the spans that ended within that time, in the order of their ends."""

    ticket: Ticket
    spans: tuple[Span, ...]


class Acknowledged(Struct, frozen=True, array_like=True, tag=True):
    """Answer to a command about a model or a device, except `AskTrace`.

    An empty `error` means done (or, for `Load`, begun). `code` is the error's, if known. `instance` is the
    device that `AddDevice` added.
    """

    ticket: Ticket
    error: str = ""
    code: ErrorCode | None = None
    instance: InstanceId | None = None


class Alive(Struct, frozen=True, array_like=True, tag=True):
    """The node's loop is alive: sent once a second, and first when the node can receive commands.

    If `silent_s` is not zero, the node's next action may take that long, and it sends nothing meanwhile.
    """

    silent_s: float = 0.0


class Broken(Struct, frozen=True, array_like=True, tag=True):
    """The node cannot continue. Its requests may be submitted elsewhere with the tokens delivered so
    far."""

    detail: str


Report = (
    Tokens
    | PromptTold
    | PromptPooled
    | Finished
    | PhaseChanged
    | NodeStatus
    | NodeUse
    | Traced
    | Acknowledged
    | Alive
    | Broken
)
"""`PhaseChanged` is a value of the core, which knows no codec: it travels as a map, the others as arrays
that begin with their name."""


class Reports(Struct, frozen=True, array_like=True):
    """One message of a node: what `origin` has to say, in order."""

    origin: NodeId
    reports: Sequence[Report]
