"""What the client gives and returns: plain frozen values, none of them tied to gRPC."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is "system", "user" or "assistant"."""

    role: str
    content: str


Prompt = str | Sequence[int] | Sequence[Message] | Sequence[Mapping[str, str]]
"""Text, token ids, or a conversation (messages, or mappings with "role" and "content")."""


@dataclass(frozen=True, slots=True)
class PromptInfo:
    """What the server made of a request; `seed` repeats it exactly."""

    request_id: str
    model: str
    n_prompt_tokens: int
    max_tokens: int
    seed: int


class Phase(Enum):
    """Where a request is. UNKNOWN: the server is newer than this client."""

    QUEUED = "queued"
    LOADING = "loading"
    RUNNING = "running"
    PAGED_OUT = "paged out"
    PAUSED = "paused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class State:
    """A change of phase; `position` of the queued, `progress` (0 to 1) of the loading."""

    phase: Phase
    position: int
    progress: float


@dataclass(frozen=True, slots=True)
class Delta:
    """New output. Text may lag behind the token ids while it could become a stop string."""

    index: int
    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """How a request ended. `reason` is "stop" or "length"; times are seconds since the request arrived at the server."""

    reason: str
    stop_string: str | None
    stop_token_id: int | None
    n_prompt_tokens: int
    n_completion_tokens: int
    n_tokens_on_time: int
    queue_s: float
    ttft_s: float
    total_s: float
    seed: int


Event = PromptInfo | State | Delta | Finish


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    prompt: PromptInfo
    finish: Finish


class Residency(Enum):
    """Where a model's weights are. UNKNOWN: not reported yet."""

    DISK = "disk"
    FETCHING = "fetching"
    HOST = "host"
    LOADING = "loading"
    RESIDENT = "resident"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the catalogue. Sizes in bytes, times in seconds; totals since the worker started."""

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
    n_swaps: int
    swap_bytes: int
    swap_s: float
    swap_exposed_s: float
    n_prompt_tokens: int
    n_tokens: int
    n_tokens_on_time: int
    compute_s: float


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a client may want to know of a model before it asks."""

    name: str
    max_context: int
    vocab_size: int
    has_chat_template: bool
    end_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """One execution unit. Sizes in bytes, times in seconds on the worker's clock; rates are differences of two statuses."""

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
    running_model: str


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The pool at a moment."""

    version: str
    uptime_s: float
    n_requests: int
    max_requests: int
    n_restarts: int
    instances: tuple[Instance, ...]
    models: tuple[Model, ...]
