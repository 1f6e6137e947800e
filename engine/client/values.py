"""What applications give the client and get from it: plain frozen values, none of them tied to gRPC."""

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
