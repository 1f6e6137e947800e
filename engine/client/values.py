"""What the client gives and returns: plain frozen values, none of them tied to gRPC."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool. `arguments` are the text of a JSON object, as the model wrote it; `id` names the call
    in the message that answers it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is "system", "user", "assistant" or "tool".

    A message of the assistant may have `tool_calls`. Their results are messages of the role "tool", with the
    call's id as `tool_call_id`.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


Prompt = str | Sequence[int] | Sequence[Message] | Sequence[Mapping[str, Any]]
"""Text, token ids, or a conversation: messages, or mappings as OpenAI has them, with "role" and "content",
and perhaps "tool_calls", "tool_call_id" and "name"."""


@dataclass(frozen=True, slots=True)
class PromptInfo:
    """What the server made of a request. `seed` repeats it exactly."""

    request_id: str
    model: str
    n_prompt_tokens: int
    max_tokens: int
    seed: int


class Phase(Enum):
    """The phase of a request. UNKNOWN: the server is newer than this client."""

    QUEUED = "queued"
    LOADING = "loading"
    RUNNING = "running"
    PAGED_OUT = "paged out"
    PAUSED = "paused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class State:
    """A change of phase, with `position` in the queue if queued and `progress` (0 to 1) if loading."""

    phase: Phase
    position: int
    progress: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities, base e, where one token was drawn: that of this token, and the likeliest ones as
    (token id, log-probability), likeliest first.

    `spelling` is what the token stands for in UTF-8, which may be a part of a character, and `top_spellings`
    are those of the likeliest ones."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    spelling: bytes = b""
    top_spellings: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Tokens of the prompt, the first of them at `index`, and what `prompt_logprobs` asked for of each; None
    for the first token of all, which `first_spelling` spells."""

    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs | None, ...]
    first_spelling: bytes = b""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A call of a tool, or a piece of one; `index` is its place among the calls of the output. `id` and
    `name` are there in the first piece; all `arguments` of a call are put together."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Delta:
    """New output. Text lags behind the token ids while it could become a stop string or a call of a tool.
    `logprobs` has one for each token id, if they were asked for. `choice` is the output to which it belongs,
    if `n` asked for several."""

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    choice: int = 0
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """How an output ended. `reason` is "stop", "length" or "tool_calls"; times are seconds since the request
    arrived at the server. `seed` is that of this output: a request with it gives the same tokens.

    If the stream went on at another server, that one drew all but `n_resumed_tokens`, and counts those of its
    own that were on time. `n_cached_prompt_tokens` of the prompt were not computed, since the prefix cache of
    that server had them."""

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
    choice: int = 0
    n_resumed_tokens: int = 0
    n_cached_prompt_tokens: int = 0


GenerationEvent = PromptInfo | State | PromptLogprobs | Delta | Finish


@dataclass(frozen=True, slots=True)
class Choice:
    """One output. `logprobs` has one for each token id, if they were asked for. Its calls of tools are not in
    the text."""

    text: str
    token_ids: tuple[int, ...]
    finish: Finish
    logprobs: tuple[TokenLogprobs, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """What all outputs used together; the prompt counts once. `n_cached_prompt_tokens` is the least of all
    outputs."""

    n_prompt_tokens: int
    n_completion_tokens: int
    n_tokens_on_time: int
    n_cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `text`, `token_ids`, `finish`, `logprobs` and `tool_calls` are those of the first
    output; `choices` has all that `n` asked for. `prompt_logprobs` is there if it was asked for."""

    text: str
    token_ids: tuple[int, ...]
    prompt: PromptInfo
    finish: Finish
    choices: tuple[Choice, ...]
    usage: TokenUsage
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: PromptLogprobs | None = None
    tool_calls: tuple[ToolCall, ...] = ()


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


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a client may want to know of a model before using it."""

    name: str
    max_context: int
    vocab_size: int
    has_chat_template: bool
    end_token_ids: tuple[int, ...]
    embedding_dimensions: int = 0
    """How many numbers its embeddings have; 0: it makes none."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """The embeddings of all inputs of a call, in order, and the number of tokens that the inputs have."""

    model: str
    values: tuple[tuple[float, ...], ...]
    n_prompt_tokens: int


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
