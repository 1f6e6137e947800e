"""Conversion between protobuf messages and the server's values.

The only check here is for more than is worth converting: `tokenmux.server.front.request_rules` judges
requests.
"""

import logging
from collections.abc import Iterable

from tokenmux.core.errors import InvalidRequest
from tokenmux.core.facts import ModelFacts
from tokenmux.core.phases import PhaseChanged
from tokenmux.core.request import FinishReason
from tokenmux.messages.reports import Durations, Service, WorkerStatus
from tokenmux.server.front.administration import ShownModel
from tokenmux.server.front.generation import (
    Ask,
    Chat,
    ChatMessage,
    FinishInfo,
    PromptInfo,
    StreamEvent,
    Text,
    TokenDelta,
    TokenIds,
)
from tokenmux.server.front.request_rules import (
    MAX_CHAT_MESSAGES,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    check_count,
)
from tokenmux.server.front.usage import Usage
from tokenmux.v1 import inference_pb2, models_pb2, planning_pb2, pool_pb2
from tokenmux.workload.trace import TraceRequest

logger = logging.getLogger(__name__)


def ask_of(request: inference_pb2.GenerateRequest, tenant: str | None) -> Ask:
    """The question in a request. `tenant`, if known from the caller's key, replaces the request's own.

    Raises InvalidRequest if there is no prompt, or if there are more strings, ids or messages than are worth
    copying.
    """
    sampling, stopping, level = request.sampling, request.stopping, request.service_level
    check_count("stop strings", stopping.strings, MAX_STOP_STRINGS)
    check_count("stop token ids", stopping.token_ids, MAX_STOP_TOKEN_IDS)
    return Ask(
        model=request.model,
        prompt=_prompt_of(request),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p if sampling.HasField("top_p") else 1.0,
        seed=sampling.seed if sampling.HasField("seed") else None,
        max_tokens=stopping.max_tokens if stopping.HasField("max_tokens") else None,
        min_tokens=stopping.min_tokens,
        stop_strings=tuple(stopping.strings),
        stop_token_ids=tuple(stopping.token_ids),
        ignore_end_tokens=stopping.ignore_end_tokens,
        ttft_s=level.ttft_s if level.HasField("ttft_s") else None,
        tpot_s=level.tpot_s if level.HasField("tpot_s") else None,
        tenant=request.tenant if tenant is None else tenant,
        weight=request.weight if request.HasField("weight") else 1.0,
    )


def _prompt_of(request: inference_pb2.GenerateRequest) -> Text | TokenIds | Chat:
    match request.WhichOneof("prompt"):
        case "text":
            return Text(request.text)
        case "token_ids":
            return TokenIds(request.token_ids.ids)
        case "chat":
            return chat_of(request.chat)
        case _:
            raise InvalidRequest("there is no prompt: give text, token_ids or chat")


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
    check_count("chat messages", chat.messages, MAX_CHAT_MESSAGES)
    return Chat(tuple(ChatMessage(message.role, message.content) for message in chat.messages))


def stream_response(event: StreamEvent) -> inference_pb2.GenerateStreamResponse:
    """One event of a stream as a message."""
    match event:
        case PromptInfo():
            return inference_pb2.GenerateStreamResponse(prompt_info=prompt_info(event))
        case PhaseChanged():
            return inference_pb2.GenerateStreamResponse(state=_state(event))
        case TokenDelta(index, token_ids, text):
            delta = inference_pb2.TokenDelta(index=index, token_ids=token_ids, text=text)
            return inference_pb2.GenerateStreamResponse(tokens=delta)
        case FinishInfo():
            return inference_pb2.GenerateStreamResponse(finish_info=finish_info(event))


def prompt_info(info: PromptInfo) -> inference_pb2.PromptInfo:
    return inference_pb2.PromptInfo(
        request_id=info.request,
        model=info.model,
        n_prompt_tokens=info.n_prompt,
        max_tokens=info.max_tokens,
        seed=info.seed,
    )


def _state(state: PhaseChanged) -> inference_pb2.RequestState:
    return inference_pb2.RequestState(
        phase=f"REQUEST_PHASE_{state.phase.name}", position=state.position, progress=state.progress
    )


_REASONS = {
    FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
}


def finish_info(info: FinishInfo) -> inference_pb2.FinishInfo:
    return inference_pb2.FinishInfo(
        reason=_REASONS[info.reason],
        stop_string=info.stop_string,
        stop_token_id=info.stop_token_id,
        usage=inference_pb2.Usage(
            n_prompt_tokens=info.n_prompt,
            n_completion_tokens=info.n_completion,
            n_tokens_on_time=info.n_on_time,
        ),
        timings=inference_pb2.Timings(queue_s=info.queue_s, ttft_s=info.ttft_s, total_s=info.total_s),
        seed=info.seed,
    )


def model(view: ShownModel) -> models_pb2.Model:
    """A model with its latest status from the worker.

    A model with numbers that no message can hold is shown as refused, so that it does not take the status of
    all others with it.
    """
    try:
        return _whole_model(view)
    except (ValueError, TypeError, OverflowError) as error:
        logger.error("%s cannot be shown: %s; %r", view.name, error, view)
        return models_pb2.Model(
            name=view.name, refusal=view.refusal or f"its figures are impossible ({error}): remove it"
        )


def _whole_model(view: ShownModel) -> models_pb2.Model:
    status = view.status
    message = models_pb2.Model(name=view.name, pinned=view.pinned, refusal=view.refusal)
    if view.facts is not None:
        message.MergeFrom(_facts(view.facts))
    if status is not None:
        message.MergeFrom(
            models_pb2.Model(
                residency=f"RESIDENCY_{status.residency.name}",
                n_queued=status.n_queued,
                n_running=status.n_running,
                n_paged_out=status.n_paged_out,
                n_swaps=status.n_swaps,
                swap_bytes=status.swap_bytes,
                swap_s=status.swap_s,
                swap_exposed_s=status.swap_exposed_s,
                n_prompt_tokens=status.n_prompt_tokens,
                n_tokens=status.n_tokens,
                n_tokens_on_time=status.n_tokens_on_time,
                compute_s=status.compute_s,
            )
        )
    if view.use is not None:
        message.service.CopyFrom(service(view.use.service))
        for reason, n in view.use.swaps.items():
            setattr(message, f"n_swaps_{reason}", n)
    return message


def _facts(facts: ModelFacts) -> models_pb2.Model:
    return models_pb2.Model(
        weight_bytes=facts.n_bytes,
        kv_bytes_per_token=facts.kv.token_bytes,
        n_parameters=facts.n_parameters,
        max_context=facts.max_context,
        vocab_size=facts.vocab_size,
    )


def service(counters: Service) -> models_pb2.Service:
    return models_pb2.Service(
        n_requests=counters.n_requests,
        n_requests_on_time=counters.n_requests_on_time,
        n_requests_failed=counters.n_requests_failed,
        n_prompt_tokens=counters.n_prompt_tokens,
        n_tokens=counters.n_tokens,
        n_tokens_on_time=counters.n_tokens_on_time,
        artifact_attainment=counters.attained / counters.n_attained if counters.n_attained else 0.0,
        gpu_s=counters.gpu_s,
        ttft=_durations(counters.ttft),
        tpot=_durations(counters.tpot),
        gaps=_durations(counters.gaps),
    )


def _durations(histogram: Durations) -> models_pb2.Durations:
    return models_pb2.Durations(counts=histogram.counts, total_s=histogram.total_s)


def tenants(usage: Usage) -> list[pool_pb2.Tenant]:
    """Usage by tenant, sorted by name."""
    return [pool_pb2.Tenant(name=name, service=service(own)) for name, own in sorted(usage.tenants.items())]


def sizes(models: Iterable[ModelFacts]) -> list[planning_pb2.ModelSizes]:
    """Sizes of all models whose sizes a message can hold."""
    messages = []
    for facts in models:
        try:
            messages.append(_sizes(facts))
        except (ValueError, TypeError, OverflowError) as error:
            logger.error("%s is left out of the catalogue's sizes: %s", facts.id, error)
    return messages


def _sizes(facts: ModelFacts) -> planning_pb2.ModelSizes:
    return planning_pb2.ModelSizes(
        name=facts.id,
        weight_bytes=facts.n_bytes,
        n_parameters=facts.n_parameters,
        max_context=facts.max_context,
        vocab_size=facts.vocab_size,
        n_layers=facts.kv.n_layers,
        n_kv_heads=facts.kv.n_kv_heads,
        head_dim=facts.kv.head_dim,
        dtype_bytes=facts.kv.dtype_bytes,
    )


def recorded(line: TraceRequest) -> planning_pb2.RecordedRequest:
    return planning_pb2.RecordedRequest(
        arrival_s=line.arrival_s,
        model=line.model,
        input_tokens=line.input_tokens,
        output_tokens=line.output_tokens,
        tenant=line.tenant,
        ttft_s=line.ttft_s,
        tpot_s=line.tpot_s,
        weight=line.weight,
    )


def instance(status: WorkerStatus, usage: Usage) -> pool_pb2.Instance:
    return pool_pb2.Instance(
        at_s=status.at_s,
        device=status.device,
        arena_bytes=status.arena_bytes,
        weight_bytes=status.weight_bytes,
        kv_bytes=status.kv_bytes,
        host_cache_bytes=status.host_cache_bytes,
        host_cache_used_bytes=status.host_cache_used_bytes,
        host_kv_bytes=status.host_kv_bytes,
        host_kv_used_bytes=status.host_kv_used_bytes,
        compute_busy_s=status.compute_busy_s,
        copy_in_busy_s=status.copy_in_busy_s,
        copy_out_busy_s=status.copy_out_busy_s,
        fetch_busy_s=status.fetch_busy_s,
        n_steps=status.n_steps,
        n_discards=status.n_discards,
        running_model=status.running_model or "",
        work_s=usage.work_s,
        model_work_s=usage.model_work_s,
        n_models_used=usage.n_models_used,
    )
