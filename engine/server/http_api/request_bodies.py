"""The bodies of `/v1/completions` and `/v1/chat/completions`, and where in the front's `Ask` each field goes.

Only types are checked here: `tokenmux.server.front.request_rules` says what is acceptable. Names are
OpenAI's or, where it has none, vLLM's (`cache_prompt` is llama.cpp's); `ttft_s`, `tpot_s`, `timeout_s` and
`weight` are ours. All fields may be null.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from tokenmux.core.errors import InvalidRequest
from tokenmux.server.front.generation import Prompt, Text, TokenIds
from tokenmux.server.front.request_rules import MAX_CHAT_MESSAGES, MAX_DOCUMENTS, MAX_TOOLS
from tokenmux.server.front.sampling_rules import MAX_BIASES
from tokenmux.server.http_api.body_fields import AskBody, Lenient, ListOf, To, at_most, few_prompts
from tokenmux.server.http_api.constraint_bodies import (
    ResponseFormat,
    SchemaBody,
    StructuredOutputs,
    constraint_of_format,
    constraint_of_outputs,
)
from tokenmux.server.http_api.conversations import (
    CallBody,
    CalledFunction,
    ContentPart,
    FunctionBody,
    MessageBody,
    NamedFunction,
    NamedTool,
    ToolBody,
    choice_of_body,
    conversation_of,
    tools_of,
)
from tokenmux.server.http_api.embedding_bodies import EmbeddingBody

OPENAI_TEMPERATURE = 1.0
OPENAI_COMPLETION_TOKENS = 16
MAX_FAULTS_SHOWN = 3
MAX_PROMPTS = 256
"""Prompts of one body."""
MAX_ID_DIGITS = 12


def prompts_of(prompt: str | list[Any]) -> Sequence[Prompt]:
    """Texts or lists of token ids, one or several."""
    if isinstance(prompt, str):
        return (Text(prompt),)
    if not prompt or isinstance(prompt[0], int):
        return (TokenIds(prompt),)
    return [Text(one) if isinstance(one, str) else TokenIds(one) for one in prompt]


def first_prompt_of(prompt: str | list[Any]) -> Prompt:
    return prompts_of(prompt)[0]


def strings_of(stop: str | Sequence[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)


def top_k_of(top_k: int) -> int:
    """-1 is vLLM's word for no limit."""
    return 0 if top_k == -1 else top_k


def biases_of(logit_bias: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """JSON has no integers as names."""
    for token in logit_bias:
        if not token.isascii() or not token.isdigit() or len(token) > MAX_ID_DIGITS:
            said = f"logit_bias: {token[:40]!r} is not a token id: use a decimal number"
            raise InvalidRequest(said, field="logit_bias")
    return tuple((int(token), bias) for token, bias in logit_bias.items())


class StreamOptions(Lenient):
    """Options of a stream."""

    include_usage: bool | None = None
    """Send a last chunk with the usage."""


class GenerationBody(AskBody):
    """The fields that both kinds of completion have."""

    model: Annotated[str, To("model")]
    n: Annotated[int | None, To("n")] = None
    temperature: Annotated[float | None, To("temperature")] = OPENAI_TEMPERATURE
    top_p: Annotated[float | None, To("top_p")] = None
    top_k: Annotated[int | None, To("top_k", by=top_k_of)] = None
    min_p: Annotated[float | None, To("min_p")] = None
    seed: Annotated[int | None, To("seed")] = None
    presence_penalty: Annotated[float | None, To("presence_penalty")] = None
    frequency_penalty: Annotated[float | None, To("frequency_penalty")] = None
    repetition_penalty: Annotated[float | None, To("repetition_penalty")] = None
    logit_bias: Annotated[
        dict[str, float] | None,
        at_most(MAX_BIASES, "tokens in logit_bias", "logit_bias"),
        To("logit_bias", by=biases_of),
    ] = None
    bad_words: Annotated[ListOf[str] | None, To("bad_words", by=tuple)] = None
    stop: Annotated[str | ListOf[str] | None, To("stop_strings", by=strings_of)] = None
    stop_token_ids: Annotated[ListOf[int] | None, To("stop_token_ids", by=tuple)] = None
    min_tokens: Annotated[int | None, To("min_tokens")] = None
    include_stop_str_in_output: Annotated[bool | None, To("include_stop_string")] = None
    skip_special_tokens: Annotated[bool | None, To("skip_special_tokens")] = None
    truncate_prompt_tokens: Annotated[int | None, To("truncate_prompt_tokens")] = None
    ignore_eos: Annotated[bool | None, To("ignore_end_tokens")] = None
    user: Annotated[str | None, To("tenant")] = None
    """The tenant, where the server has no keys."""
    ttft_s: Annotated[float | None, To("ttft_s")] = None
    """When the first token is due, in seconds."""
    tpot_s: Annotated[float | None, To("tpot_s")] = None
    """When each further token is due, in seconds after the one before."""
    weight: Annotated[float | None, To("weight")] = None
    timeout_s: Annotated[float | None, To("timeout_s")] = None
    """How long to wait for the whole answer, in seconds; then the request ends."""
    request_id: Annotated[str | None, To("request_id")] = None
    """An id for the request, to cancel it (a field of vLLM's)."""
    cache_prompt: Annotated[bool | None, To("prefix_cache")] = None
    """False: neither take KV of the prompt from the prefix cache nor leave it there (a field of
    llama.cpp's)."""
    cache_salt: Annotated[str | None, To("cache_salt")] = None
    """Share KV of the prompt only with requests that have the same salt, 1 to 256 characters (a field of
    vLLM's)."""
    prompt_logprobs: Annotated[int | None, To("prompt_logprobs")] = None
    response_format: Annotated[ResponseFormat | None, To("constraint", by=constraint_of_format)] = None
    structured_outputs: Annotated[StructuredOutputs | None, To("constraint", by=constraint_of_outputs)] = None
    """What the output must obey (a field of vLLM's)."""
    return_token_ids: bool | None = None
    """Return the token ids of prompt and output too (a field of vLLM's)."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class CompletionBody(GenerationBody):
    """The body of `POST /v1/completions`."""

    prompt: Annotated[
        Annotated[str, Field(title="text")]
        | Annotated[ListOf[int], Field(title="token ids")]
        | Annotated[ListOf[str], Field(title="texts")]
        | Annotated[ListOf[ListOf[int]], Field(title="lists of token ids")],
        few_prompts(MAX_PROMPTS, "prompts", "prompt"),
        To("prompt", by=first_prompt_of),
    ]
    max_tokens: Annotated[int | None, To("max_tokens")] = OPENAI_COMPLETION_TOKENS
    echo: Annotated[bool | None, To("echo")] = None
    logprobs: Annotated[int | None, To("logprobs")] = None

    @property
    def prompts(self) -> Sequence[Prompt]:
        return prompts_of(self.prompt)

    def together(self, translated: Mapping[str, Any]) -> Mapping[str, Any]:
        """A text that begins with the prompt has its log-probabilities too."""
        if not self.echo or self.logprobs is None:
            return {}
        return {"prompt_logprobs": max(self.logprobs, translated.get("prompt_logprobs", self.logprobs))}


class ChatBody(GenerationBody):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[
        ListOf[MessageBody],
        at_most(MAX_CHAT_MESSAGES, "chat messages", "messages"),
        To("prompt", by=conversation_of),
    ]
    max_completion_tokens: Annotated[int | None, To("max_tokens")] = None
    max_tokens: Annotated[int | None, To("max_tokens")] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, To("logprobs")] = None

    tools: Annotated[ListOf[ToolBody] | None, at_most(MAX_TOOLS, "tools", "tools")] = None
    tool_choice: Annotated[
        Literal["none", "auto", "required", "text"] | NamedTool | None, To("tool_choice", by=choice_of_body)
    ] = None
    parallel_tool_calls: Annotated[bool | None, To("several_calls")] = None
    """If false, calls after the first are left out."""
    documents: Annotated[ListOf[dict[str, Any]] | None, at_most(MAX_DOCUMENTS, "documents", "documents")] = (
        None
    )
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    def together(self, translated: Mapping[str, Any]) -> Mapping[str, Any]:
        prompt = replace(
            translated["prompt"],
            tools=tools_of(self.tools or ()),
            documents=tuple(self.documents or ()),
            arguments=self.chat_template_kwargs or {},
            continue_final_message=self._continues(),
        )
        return {"prompt": prompt, "logprobs": self._n_likeliest()}

    def _continues(self) -> bool:
        continues = bool(self.continue_final_message)
        if self.add_generation_prompt is not None and self.add_generation_prompt == continues:
            said = (
                "add_generation_prompt begins a new message of the assistant, and continue_final_message "
                "continues the last one: set one of them"
            )
            raise InvalidRequest(said, field="add_generation_prompt")
        return continues

    def _n_likeliest(self) -> int | None:
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs:
            said = "top_logprobs is for log-probabilities: set logprobs to true too"
            raise InvalidRequest(said, field="top_logprobs")
        return None


Body = TypeVar("Body", bound=GenerationBody)
Parsed = TypeVar("Parsed", bound=Lenient)

_FIELDS = frozenset(
    name
    for body in (
        CompletionBody,
        ChatBody,
        MessageBody,
        ContentPart,
        CallBody,
        CalledFunction,
        ToolBody,
        FunctionBody,
        NamedTool,
        NamedFunction,
        StreamOptions,
        ResponseFormat,
        SchemaBody,
        StructuredOutputs,
        EmbeddingBody,
    )
    for name in body.model_fields
)


def parse_body(kind: type[Body], raw: bytes) -> Body:
    """Read a body. Raises InvalidRequest, naming the first field that is wrong."""
    body = parsed(kind, raw)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options is for streams: set stream too", field="stream_options")
    if body.prompt_logprobs is not None and body.stream:
        said = "prompt_logprobs are for answers in one piece: leave stream out"
        raise InvalidRequest(said, field="prompt_logprobs")
    return body


def parsed(kind: type[Parsed], raw: bytes) -> Parsed:
    """Check the types of a body alone. Raises as `parse_body`."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise _wrong_body(error) from None


def _wrong_body(error: ValidationError) -> InvalidRequest:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    first = found[0]
    if first["type"] == "json_invalid":
        return InvalidRequest(f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    place = _place(first["loc"])
    if not place:
        return InvalidRequest('the body is not a JSON object: send one, such as {"model": ...}')
    said = [item["msg"].removeprefix("Input ") for item in found if _place(item["loc"]) == place]
    if first["type"] == "missing":
        return InvalidRequest(f"{place} is missing", field=place)
    return InvalidRequest(f"{place}: {' or '.join(said[:MAX_FAULTS_SHOWN])}", field=place)


def _place(loc: tuple[int | str, ...]) -> str:
    """Where in the body, without the names that pydantic gives to alternatives."""
    place = ""
    for part in loc:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part in _FIELDS:
            place += f".{part}" if place else part
    return place
