"""What the server says of generations, embeddings and models, as values."""

from collections.abc import Iterable

from tokenmux.client.value_making import enum_member, same_named
from tokenmux.client.values import (
    Choice,
    Completion,
    Delta,
    Finish,
    GenerationEvent,
    ModelMetadata,
    Phase,
    PromptInfo,
    PromptLogprobs,
    State,
    TokenLogprobs,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
    Vectors,
)
from tokenmux.v1 import inference_pb2


def event(response: inference_pb2.GenerateStreamResponse) -> GenerationEvent | None:
    """One event of a stream; None for a kind that this client does not know yet."""
    match response.WhichOneof("event"):
        case "prompt_info":
            return prompt_info(response.prompt_info)
        case "state":
            state = response.state
            phase = enum_member(Phase, inference_pb2.RequestPhase.Name, state.phase, "REQUEST_PHASE_")
            return State(phase, state.position, state.progress)
        case "tokens":
            tokens = response.tokens
            told = _logprobs(tokens.logprobs)
            calls = tuple(
                ToolCallDelta(call.index, call.id, call.name, call.arguments) for call in tokens.tool_calls
            )
            return Delta(tokens.index, tuple(tokens.token_ids), tokens.text, told, tokens.choice, calls)
        case "prompt_logprobs":
            return prompt_logprobs_of(response.prompt_logprobs)
        case "finish_info":
            return finish(response.finish_info)
        case _:
            return None


def prompt_info(info: inference_pb2.PromptInfo) -> PromptInfo:
    return PromptInfo(info.request_id, info.model, info.n_prompt_tokens, info.max_tokens, info.seed)


_REASONS = {
    inference_pb2.FINISH_REASON_STOP: "stop",
    inference_pb2.FINISH_REASON_LENGTH: "length",
    inference_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


def finish(info: inference_pb2.FinishInfo) -> Finish:
    return Finish(
        reason=_REASONS.get(info.reason, "unknown"),
        stop_string=info.stop_string if info.HasField("stop_string") else None,
        stop_token_id=info.stop_token_id if info.HasField("stop_token_id") else None,
        n_prompt_tokens=info.usage.n_prompt_tokens,
        n_completion_tokens=info.usage.n_completion_tokens,
        n_tokens_on_time=info.usage.n_tokens_on_time,
        n_resumed_tokens=info.usage.n_resumed_tokens,
        n_cached_prompt_tokens=info.usage.n_cached_prompt_tokens,
        queue_s=info.timings.queue_s,
        ttft_s=info.timings.ttft_s,
        total_s=info.timings.total_s,
        seed=info.seed,
        choice=info.choice,
    )


def completion(response: inference_pb2.GenerateResponse) -> Completion:
    choices = tuple(
        Choice(
            each.text,
            tuple(each.token_ids),
            finish(each.finish_info),
            _logprobs(each.logprobs),
            tuple(ToolCall(call.id, call.name, call.arguments) for call in each.tool_calls),
        )
        for each in response.choices
    )
    first, prompt = choices[0], response.prompt_logprobs
    return Completion(
        first.text,
        first.token_ids,
        prompt_info(response.prompt_info),
        first.finish,
        choices,
        TokenUsage(**same_named(TokenUsage, response.usage)),
        first.logprobs,
        prompt_logprobs_of(prompt) if prompt.token_ids else None,
        first.tool_calls,
    )


def prompt_logprobs_of(message: inference_pb2.PromptLogprobs) -> PromptLogprobs:
    told = _logprobs(message.logprobs)
    return PromptLogprobs(
        message.index,
        tuple(message.token_ids),
        told if message.index else (None, *told),
        message.first_spelling,
    )


def _logprobs(messages: Iterable[inference_pb2.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(
            message.logprob,
            tuple((top.token_id, top.logprob) for top in message.top),
            message.spelling,
            tuple(top.spelling for top in message.top),
        )
        for message in messages
    )


def vectors(response: inference_pb2.EmbedResponse) -> Vectors:
    return Vectors(
        response.model,
        tuple(tuple(one.values) for one in response.embeddings),
        response.usage.n_prompt_tokens,
    )


def metadata(response: inference_pb2.ModelMetadataResponse) -> ModelMetadata:
    return ModelMetadata(
        response.model,
        response.max_context,
        response.vocab_size,
        response.has_chat_template,
        tuple(response.end_token_ids),
        response.embedding.dimensions,
    )
