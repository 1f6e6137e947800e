"""The events of the front's streams as messages, one by one or all in one."""

from collections import defaultdict
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator, Mapping

from tokenmux.core.phases import PhaseChanged
from tokenmux.core.request import FinishReason
from tokenmux.core.sampling import LogProbabilities
from tokenmux.server.front.generation import (
    FinishInfo,
    PlacedCall,
    PromptDelta,
    PromptInfo,
    StreamEvent,
    TokenDelta,
)
from tokenmux.v1 import inference_pb2


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
                _add_calls(choices[place], event.calls)
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


def _add_calls(choice: inference_pb2.Choice, calls: Iterable[PlacedCall]) -> None:
    """Add calls, or pieces of them, to what a choice has."""
    for call in calls:
        if call.start is not None:
            choice.tool_calls.add(id=call.start.id, name=call.start.name)
        choice.tool_calls[call.index].arguments += call.arguments


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
                tool_calls=map(_call_piece, event.calls),
            )
            return inference_pb2.GenerateStreamResponse(tokens=delta)
        case PromptDelta():
            return inference_pb2.GenerateStreamResponse(prompt_logprobs=prompt_logprobs_message(event))
        case FinishInfo():
            return inference_pb2.GenerateStreamResponse(finish_info=finish_info_message(event))


def _call_piece(call: PlacedCall) -> inference_pb2.ToolCallDelta:
    if call.start is None:
        return inference_pb2.ToolCallDelta(index=call.index, arguments=call.arguments)
    start = call.start
    return inference_pb2.ToolCallDelta(
        index=call.index, id=start.id, name=start.name, arguments=call.arguments
    )


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


def _reason_of(info: FinishInfo) -> inference_pb2.FinishReason:
    if info.reason is FinishReason.LENGTH:
        return inference_pb2.FINISH_REASON_LENGTH
    return inference_pb2.FINISH_REASON_TOOL_CALLS if info.called else inference_pb2.FINISH_REASON_STOP


def finish_info_message(info: FinishInfo) -> inference_pb2.FinishInfo:
    return inference_pb2.FinishInfo(
        reason=_reason_of(info),
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
