"""Questions of clients, and the events of their streams, between messages and the front's values.

The only check here is for more than is worth converting: `tokenmux.server.front.request_rules` judges
requests.
"""

import json
from collections import defaultdict
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Mapping

from tokenmux.core.errors import InvalidRequest
from tokenmux.core.phases import PhaseChanged
from tokenmux.core.request import FinishReason
from tokenmux.core.sampling import LogProbabilities
from tokenmux.server.front.constraint_rules import MAX_CHOICES, choice_of
from tokenmux.server.front.counts import check_count
from tokenmux.server.front.generation import (
    Ask,
    Chat,
    ChatMessage,
    Constraint,
    Delivered,
    FinishInfo,
    PromptDelta,
    PromptInfo,
    StreamEvent,
    Text,
    TokenDelta,
    TokenIds,
)
from tokenmux.server.front.request_rules import (
    MAX_CHAT_MESSAGES,
    MAX_DOCUMENTS,
    MAX_SECONDS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_TOOLS,
    MIN_SECONDS,
)
from tokenmux.server.front.sampling_rules import MAX_BAD_WORDS, MAX_BIASES, MAX_FORBIDDEN_TOKENS
from tokenmux.server.grpc_api.field_paths import check_features
from tokenmux.v1 import inference_pb2

MAX_DELIVERED = 128
"""More choices than any server serves in one call."""

MAX_JSON_CHARS = 1 << 16
"""Bounds one tool, one document or all template arguments, which are parsed on the event loop."""


def ask_of(request: inference_pb2.GenerateRequest, remaining_s: float | None = None) -> Ask:
    """The question in a request, whose call has a deadline in `remaining_s` if it has one.

    Raises InvalidRequest if there is no prompt, or if there are more strings, ids or messages than are worth
    copying; UnknownFeature if it relies on what this server does not know.
    """
    check_features(request.required_features)
    sampling, stopping, level = request.sampling, request.stopping, request.service_level
    output, cache = request.output, request.prefix_cache
    check_count("stop strings", stopping.strings, MAX_STOP_STRINGS, field="stop_strings")
    check_count("stop token ids", stopping.token_ids, MAX_STOP_TOKEN_IDS, field="stop_token_ids")
    check_count("tokens in logit_bias", sampling.logit_bias, MAX_BIASES, field="logit_bias")
    check_count(
        "forbidden_token_ids", sampling.forbidden_token_ids, MAX_FORBIDDEN_TOKENS, field="forbidden_token_ids"
    )
    check_count("bad_words", sampling.bad_words, MAX_BAD_WORDS, field="bad_words")
    check_count("entries of delivered", request.delivered, MAX_DELIVERED, field="delivered")
    return Ask(
        model=request.model,
        prompt=_prompt_of(request),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p if sampling.HasField("top_p") else 1.0,
        seed=sampling.seed if sampling.HasField("seed") else None,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty if sampling.HasField("repetition_penalty") else 1.0,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        logit_bias=tuple(sorted(sampling.logit_bias.items())),
        forbidden_token_ids=tuple(sampling.forbidden_token_ids),
        bad_words=tuple(sampling.bad_words),
        n=request.n if request.HasField("n") else 1,
        logprobs=request.logprobs if request.HasField("logprobs") else None,
        prompt_logprobs=request.prompt_logprobs if request.HasField("prompt_logprobs") else None,
        max_tokens=stopping.max_tokens if stopping.HasField("max_tokens") else None,
        min_tokens=stopping.min_tokens,
        stop_strings=tuple(stopping.strings),
        stop_token_ids=tuple(stopping.token_ids),
        ignore_end_tokens=stopping.ignore_end_tokens,
        include_stop_string=stopping.include_stop_string,
        skip_special_tokens=not output.keep_special_tokens,
        echo=output.echo,
        constraint=_constraint_of(request.constraint) if request.HasField("constraint") else None,
        truncate_prompt_tokens=(
            request.truncate_prompt_tokens if request.HasField("truncate_prompt_tokens") else None
        ),
        request_id=request.request_id,
        delivered=tuple(Delivered(held.token_ids, held.complete) for held in request.delivered),
        timeout_s=timeout_of(remaining_s),
        ttft_s=level.ttft_s if level.HasField("ttft_s") else None,
        tpot_s=level.tpot_s if level.HasField("tpot_s") else None,
        tenant=request.tenant,
        weight=request.weight if request.HasField("weight") else 1.0,
        prefix_cache=not cache.off,
        cache_salt=cache.salt if cache.HasField("salt") else None,
    )


def _constraint_of(constraint: inference_pb2.Constraint) -> Constraint:
    match constraint.WhichOneof("kind"):
        case "json_schema":
            return Constraint("json_schema", constraint.json_schema)
        case "json_object" if constraint.json_object:
            return Constraint("json_object", "{}")
        case "regex":
            return Constraint("regex", constraint.regex)
        case "grammar":
            return Constraint("grammar", constraint.grammar)
        case "choices":
            check_count("strings to choose from", constraint.choices.strings, MAX_CHOICES)
            return choice_of(list(constraint.choices.strings))
        case _:
            raise InvalidRequest(
                "constraint is empty: give json_schema, json_object (true), regex, grammar or choices, or "
                "leave it out"
            )


def timeout_of(remaining_s: float | None) -> float | None:
    """How long the client waits. A deadline that is days away is none, and gRPC itself ends a call whose
    deadline has passed."""
    if remaining_s is None or remaining_s > MAX_SECONDS:
        return None
    return max(remaining_s, MIN_SECONDS)


def _prompt_of(request: inference_pb2.GenerateRequest) -> Text | TokenIds | Chat:
    match request.WhichOneof("prompt"):
        case "text":
            return Text(request.text)
        case "token_ids":
            return TokenIds(request.token_ids.ids)
        case "chat":
            return chat_of(request.chat)
        case _:
            raise InvalidRequest("there is no prompt: give text, token_ids or chat", field="prompt")


def text_or_chat_of(request: inference_pb2.TokenizeRequest) -> Text | Chat:
    """What to tokenize. Raises InvalidRequest if there is nothing."""
    match request.WhichOneof("prompt"):
        case "text":
            return Text(request.text)
        case "chat":
            return chat_of(request.chat)
        case _:
            raise InvalidRequest("there is nothing to tokenize: give text or chat")


def chat_of(chat: inference_pb2.Chat) -> Chat:
    check_count("chat messages", chat.messages, MAX_CHAT_MESSAGES, field="messages")
    check_count("tools", chat.tools, MAX_TOOLS, field="tools")
    check_count("documents", chat.documents, MAX_DOCUMENTS, field="documents")
    return Chat(
        tuple(ChatMessage(message.role, message.content) for message in chat.messages),
        tuple(_json_object("tools", tool) for tool in chat.tools),
        tuple(_json_object("documents", document) for document in chat.documents),
        _json_object("template_arguments_json", chat.template_arguments_json or "{}"),
        chat.continue_final_message,
    )


def _json_object(name: str, text: str) -> dict[str, object]:
    """Raises InvalidRequest for what is not a JSON object, or too long."""
    if len(text) > MAX_JSON_CHARS:
        raise InvalidRequest(
            f"{name} has {len(text)} characters: at most {MAX_JSON_CHARS} are allowed",
            limit=MAX_JSON_CHARS,
            given=len(text),
        )
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not JSON ({str(error)[:100]}): write an object") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{name} is not a JSON object: write {{...}}")
    return found


async def whole_response(
    events: AsyncIterable[StreamEvent],
    tell: Callable[[inference_pb2.PromptInfo], Awaitable[None]] | None = None,
) -> inference_pb2.GenerateResponse:
    """All events of a stream as one message. What the front made of the request is passed to `tell` before
    the rest is there."""
    choices: dict[int, inference_pb2.Choice] = defaultdict(inference_pb2.Choice)
    texts: dict[int, list[str]] = defaultdict(list)
    response = inference_pb2.GenerateResponse()
    async for event in events:
        match event:
            case PromptInfo():
                response.prompt_info.CopyFrom(prompt_info_message(event))
                if tell is not None:
                    await tell(response.prompt_info)
            case PromptDelta():
                response.prompt_logprobs.MergeFrom(prompt_logprobs_message(event))
            case TokenDelta(_, token_ids, text, _, place):
                choices[place].token_ids.extend(token_ids)
                choices[place].logprobs.extend(logprobs_messages(event))
                texts[place].append(text)
            case FinishInfo(choice=place):
                choices[place].finish_info.CopyFrom(finish_info_message(event))
                _add_usage(response.usage, event)
    for place, choice in sorted(choices.items()):
        choice.index, choice.text = place, "".join(texts[place])
        response.choices.append(choice)
    response.prompt_logprobs.index = 0
    return response


def _add_usage(usage: inference_pb2.Usage, info: FinishInfo) -> None:
    """Add what one choice used; all have the same prompt. Of the prompt only that was not computed which the
    cache had for all of them."""
    is_first = not usage.n_prompt_tokens
    usage.n_cached_prompt_tokens = (
        info.n_cached if is_first else min(usage.n_cached_prompt_tokens, info.n_cached)
    )
    usage.n_prompt_tokens = info.n_prompt
    usage.n_completion_tokens += info.n_completion
    usage.n_tokens_on_time += info.n_on_time
    usage.n_resumed_tokens += info.n_resumed


def stream_response(event: StreamEvent) -> inference_pb2.GenerateStreamResponse:
    """One event of a stream as a message."""
    match event:
        case PromptInfo():
            return inference_pb2.GenerateStreamResponse(prompt_info=prompt_info_message(event))
        case PhaseChanged():
            return inference_pb2.GenerateStreamResponse(state=_state(event))
        case TokenDelta(index, token_ids, text, _, choice):
            delta = inference_pb2.TokenDelta(
                index=index,
                token_ids=token_ids,
                text=text,
                choice=choice,
                logprobs=logprobs_messages(event),
            )
            return inference_pb2.GenerateStreamResponse(tokens=delta)
        case PromptDelta():
            return inference_pb2.GenerateStreamResponse(prompt_logprobs=prompt_logprobs_message(event))
        case FinishInfo():
            return inference_pb2.GenerateStreamResponse(finish_info=finish_info_message(event))


def prompt_info_message(info: PromptInfo) -> inference_pb2.PromptInfo:
    return inference_pb2.PromptInfo(
        request_id=info.request,
        model=info.model,
        n_prompt_tokens=info.n_prompt,
        max_tokens=info.max_tokens,
        seed=info.seed,
    )


def prompt_logprobs_message(delta: PromptDelta) -> inference_pb2.PromptLogprobs:
    first = dict(delta.spellings)[delta.token_ids[0]] if delta.index == 0 else b""
    return inference_pb2.PromptLogprobs(
        index=delta.index,
        token_ids=delta.token_ids,
        logprobs=logprobs_messages(delta),
        first_spelling=first,
    )


def logprobs_messages(delta: TokenDelta | PromptDelta) -> Iterator[inference_pb2.TokenLogprobs]:
    """The log-probabilities of the tokens of a delta, without a first one that has none."""
    spellings = dict(delta.spellings)
    for token, told in zip(delta.token_ids, delta.log_probabilities, strict=False):
        if told is not None:
            yield _logprobs_message(token, told, spellings)


def _logprobs_message(
    token: int, told: LogProbabilities, spellings: Mapping[int, bytes]
) -> inference_pb2.TokenLogprobs:
    return inference_pb2.TokenLogprobs(
        logprob=told.drawn,
        spelling=spellings[token],
        top=(
            inference_pb2.TopLogprob(token_id=other, logprob=value, spelling=spellings[other])
            for other, value in told.likeliest
        ),
    )


def _state(state: PhaseChanged) -> inference_pb2.RequestState:
    return inference_pb2.RequestState(
        phase=f"REQUEST_PHASE_{state.phase.name}", position=state.position, progress=state.progress
    )


_REASONS = {
    FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
}


def finish_info_message(info: FinishInfo) -> inference_pb2.FinishInfo:
    return inference_pb2.FinishInfo(
        reason=_REASONS[info.reason],
        stop_string=info.stop_string,
        stop_token_id=info.stop_token_id,
        usage=inference_pb2.Usage(
            n_prompt_tokens=info.n_prompt,
            n_completion_tokens=info.n_completion,
            n_tokens_on_time=info.n_on_time,
            n_resumed_tokens=info.n_resumed,
            n_cached_prompt_tokens=info.n_cached,
        ),
        timings=inference_pb2.Timings(queue_s=info.queue_s, ttft_s=info.ttft_s, total_s=info.total_s),
        seed=info.seed,
        choice=info.choice,
    )
