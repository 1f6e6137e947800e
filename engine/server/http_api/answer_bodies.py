"""The bodies of answers, as OpenAI's dialect has them. Fields that were not set are left out of the JSON."""

from typing import Literal

from pydantic import BaseModel

Ending = Literal["stop", "length", "tool_calls"]


class PromptTokensBody(BaseModel):
    """What became of the tokens of a prompt. `cached_tokens` of them were not computed, since the prefix
    cache had them; of several choices, the least. 0 without a cache."""

    cached_tokens: int


class UsageBody(BaseModel):
    """How many tokens a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensBody


class ScoredTokenBody(BaseModel):
    """A token that might have come."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobBody(ScoredTokenBody):
    """A token of a message, and the likeliest tokens at its place."""

    top_logprobs: list[ScoredTokenBody]


class ChatLogprobs(BaseModel):
    """The log-probabilities of a message's tokens, or of a piece of it."""

    content: list[TokenLogprobBody]
    refusal: None


class CompletionLogprobs(BaseModel):
    """The log-probabilities of a text's tokens, or of a piece of it: one item for each token."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class PromptTokenBody(BaseModel):
    """What vLLM tells of a token in a prompt."""

    logprob: float
    rank: int | None
    """The likeliest token has rank 1. Known of tokens that are among the likeliest ones."""
    decoded_token: str


PromptLogprobsBody = list[dict[str, PromptTokenBody] | None]
"""The tokens of a prompt, each with the likeliest ones at its place, by their ids (vLLM's field). The first
one has none."""


class CompletionChoice(BaseModel):
    """The text of an answer, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Ending | None
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended the text (a field of vLLM's)."""
    prompt_logprobs: PromptLogprobsBody | None = None
    prompt_token_ids: list[int] | None = None
    """The prompt's, if `return_token_ids` asks for them (a field of vLLM's)."""
    token_ids: list[int] | None = None
    """Those that were drawn, the one that ended the text included."""


class TextCompletion(BaseModel):
    """The answer of `/v1/completions`, or a chunk of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    """Seconds since 1970."""
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody | None = None


class FunctionCallBody(BaseModel):
    """The function of a call. `arguments` are the text of a JSON object."""

    name: str
    arguments: str


class ToolCallBody(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCallBody


class FunctionCallChunk(BaseModel):
    """A piece of the function of a call: the name comes first, and arguments follow each other."""

    name: str = ""
    arguments: str


class ToolCallChunk(BaseModel):
    """A piece of a call. `index` is its place among the calls of its choice; only the first piece has an
    `id`."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCallChunk


class AssistantMessage(BaseModel):
    """The assistant's turn. `content` is null if it has calls alone."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: list[ToolCallBody] | None = None


class ChatChoice(BaseModel):
    """The message of an answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Ending
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None


class ChatCompletion(BaseModel):
    """The answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    prompt_logprobs: PromptLogprobsBody | None = None
    prompt_token_ids: list[int] | None = None


class MessageDelta(BaseModel):
    """A piece of the assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    tool_calls: list[ToolCallChunk] | None = None


class ChatChunkChoice(BaseModel):
    """A piece of an answer."""

    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: Ending | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None


class ChatChunk(BaseModel):
    """A chunk of a stream of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageBody | None = None
    prompt_token_ids: list[int] | None = None


class ModelBody(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    """Tokens of prompt and output together (a field of vLLM's)."""


class ModelListBody(BaseModel):
    """All models that are served."""

    object: Literal["list"]
    data: list[ModelBody]
