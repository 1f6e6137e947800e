"""Conversion between the client's values and protobuf messages."""

import json
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from numbers import Integral
from types import MappingProxyType
from typing import Any, TypeVar, Unpack

import grpc

from tokenmux.client.errors import CallFailed, ErrorDetails, WrongArgument
from tokenmux.client.options import GenerateOptions
from tokenmux.client.values import (
    Choice,
    Completion,
    Delta,
    DeviceState,
    Durations,
    Finish,
    GenerationEvent,
    InstanceStatus,
    Message,
    Model,
    ModelMetadata,
    ModelSizes,
    Operation,
    OperationState,
    Phase,
    PoolStatus,
    PoolTrace,
    Prompt,
    PromptInfo,
    PromptLogprobs,
    RecordedRequest,
    Residency,
    Service,
    State,
    Tenant,
    TokenLogprobs,
    TokenUsage,
    Vectors,
)
from tokenmux.v1 import inference_pb2, models_pb2, operations_pb2, planning_pb2, pool_pb2

MessageT = TypeVar("MessageT")


def generate_request(
    model: str,
    prompt: Prompt,
    *,
    max_tokens: int | None = None,
    min_tokens: int = 0,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    logit_bias: Mapping[int, float] = MappingProxyType({}),
    forbidden_token_ids: Sequence[int] = (),
    bad_words: Sequence[str] = (),
    n: int | None = None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    json_schema: str | Mapping[str, object] | None = None,
    json_object: bool = False,
    regex: str | None = None,
    grammar: str | None = None,
    choice: Sequence[str] | None = None,
    stop: str | Sequence[str] = (),
    stop_token_ids: Sequence[int] = (),
    ignore_end_tokens: bool = False,
    include_stop_string: bool = False,
    echo: bool = False,
    keep_special_tokens: bool = False,
    truncate_prompt_tokens: int | None = None,
    request_id: str = "",
    tools: Sequence[Mapping[str, object]] = (),
    documents: Sequence[Mapping[str, object]] = (),
    chat_template_kwargs: Mapping[str, object] = MappingProxyType({}),
    continue_final_message: bool = False,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    prefix_cache: bool = True,
    cache_salt: str | None = None,
    tenant: str = "",
    weight: float | None = None,
) -> inference_pb2.GenerateRequest:
    """The request for the caller's arguments. Raises TypeError or WrongArgument for values that cannot be
    sent."""
    given = _prompt(prompt)
    if tools or documents or chat_template_kwargs or continue_final_message:
        if "chat" not in given:
            raise WrongArgument(
                "tools, documents, chat_template_kwargs and continue_final_message are for conversations: "
                "give messages as the prompt"
            )
        given["chat"].MergeFrom(
            _made(
                inference_pb2.Chat,
                tools=[_json("tools", tool) for tool in tools],
                documents=[_json("documents", document) for document in documents],
                template_arguments_json=_json("chat_template_kwargs", chat_template_kwargs),
                continue_final_message=continue_final_message,
            )
        )
    return _made(
        inference_pb2.GenerateRequest,
        model=model,
        sampling=_made(
            inference_pb2.Sampling,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            logit_bias=dict(logit_bias),
            forbidden_token_ids=forbidden_token_ids,
            bad_words=_texts("bad_words", bad_words),
        ),
        stopping=_made(
            inference_pb2.Stopping,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            strings=[stop] if isinstance(stop, str) else stop,
            token_ids=stop_token_ids,
            ignore_end_tokens=ignore_end_tokens,
            include_stop_string=include_stop_string,
        ),
        service_level=_made(inference_pb2.ServiceLevel, ttft_s=ttft_s, tpot_s=tpot_s),
        tenant=tenant,
        weight=weight,
        n=n,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        truncate_prompt_tokens=truncate_prompt_tokens,
        request_id=request_id,
        output=_made(inference_pb2.OutputOptions, echo=echo, keep_special_tokens=keep_special_tokens),
        constraint=_constraint(json_schema, json_object, regex, grammar, choice),
        prefix_cache=_cache_options(prefix_cache, cache_salt),
        **given,
    )


def stream_request(
    model: str, prompt: Prompt, **options: Unpack[GenerateOptions]
) -> inference_pb2.GenerateStreamRequest:
    """The same, to be streamed."""
    return inference_pb2.GenerateStreamRequest(request=generate_request(model, prompt, **options))


def _constraint(
    json_schema: str | Mapping[str, object] | None,
    json_object: bool,
    regex: str | None,
    grammar: str | None,
    choice: Sequence[str] | None,
) -> inference_pb2.Constraint | None:
    if json_schema is not None and not isinstance(json_schema, str):
        json_schema = _json("json_schema", json_schema)
    strings = None if choice is None else list(_texts("choice", choice))
    given = {
        "json_schema": json_schema,
        "json_object": json_object or None,
        "regex": regex,
        "grammar": grammar,
        "choices": None if strings is None else _made(inference_pb2.Constraint.Choices, strings=strings),
    }
    said = {name: value for name, value in given.items() if value is not None}
    if len(said) > 1:
        raise WrongArgument(f"{' and '.join(said)} cannot be held to at once: give one of them")
    return _made(inference_pb2.Constraint, **said) if said else None


def _cache_options(prefix_cache: bool, cache_salt: str | None) -> inference_pb2.PrefixCacheOptions | None:
    if prefix_cache and cache_salt is None:
        return None
    return _made(
        inference_pb2.PrefixCacheOptions,
        off=not prefix_cache,
        salt=cache_salt,
    )


def _texts(name: str, texts: Sequence[str]) -> Sequence[str]:
    """Raise TypeError for a single text, whose letters would be sent."""
    if isinstance(texts, str):
        raise TypeError(f"{name}: {reprlib.repr(texts)} is a single text: put it in a list")
    return texts


def _json(name: str, value: Mapping[str, object]) -> str:
    """Raise WrongArgument for what JSON cannot hold."""
    try:
        return json.dumps(dict(value), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise WrongArgument(f"{name}: {reprlib.repr(value)} cannot be sent: {error}") from error


def _made(kind: Callable[..., MessageT], **values: Any) -> MessageT:
    """A message of these values. If one of them cannot be sent, the error names it."""
    try:
        return kind(**values)
    except (TypeError, ValueError):
        for name, value in values.items():
            try:
                kind(**{name: value})
            except TypeError as error:
                raise TypeError(f"{name}: {error}") from error
            except ValueError as error:  # includes UnicodeEncodeError
                raise WrongArgument(f"{name}: {reprlib.repr(value)} cannot be sent: {error}") from error
        raise


def tokenize_request(model: str, prompt: Prompt) -> inference_pb2.TokenizeRequest:
    """The request for a text or a conversation. Raises TypeError for token ids: there is nothing to
    tokenize."""
    given = _prompt(prompt)
    if "token_ids" in given:
        raise TypeError("the prompt is token ids already: give text or messages")
    return _made(inference_pb2.TokenizeRequest, model=model, **given)


def embed_request(
    model: str,
    inputs: Sequence[str | Sequence[int]],
    dimensions: int | None,
    tenant: str,
    weight: float | None,
) -> inference_pb2.EmbedRequest:
    """The request for embeddings. Raises TypeError for one text that is not in a list."""
    if isinstance(inputs, str | bytes):
        raise TypeError("inputs is a single text: put it in a list")
    return _made(
        inference_pb2.EmbedRequest,
        model=model,
        inputs=[_embed_input(one) for one in inputs],
        dimensions=dimensions,
        tenant=tenant,
        weight=weight,
    )


def _embed_input(one: str | Sequence[int]) -> inference_pb2.EmbedInput:
    if isinstance(one, Integral):
        raise TypeError("inputs has a token id that is not in a list: give a list of ids for each input")
    given = _prompt(one)
    if "chat" in given:
        raise TypeError("an input is neither text nor a list of token ids")
    return _made(inference_pb2.EmbedInput, **given)


def vectors(response: inference_pb2.EmbedResponse) -> Vectors:
    return Vectors(
        response.model,
        tuple(tuple(one.values) for one in response.embeddings),
        response.usage.n_prompt_tokens,
    )


def cancel_request(request_id: str, tenant: str) -> inference_pb2.CancelGenerationRequest:
    return _made(inference_pb2.CancelGenerationRequest, request_id=request_id, tenant=tenant)


def _prompt(prompt: Prompt) -> dict[str, Any]:
    """The field of the oneof for this kind of prompt."""
    if isinstance(prompt, str):
        return {"text": prompt}
    if isinstance(prompt, bytes | bytearray | memoryview):
        raise TypeError("the prompt is bytes: decode them to text, or give token ids as a list of ints")
    if isinstance(prompt, Mapping | Message):
        raise TypeError("the prompt is a single message: put it in a list")
    items = [*prompt]
    if all(isinstance(item, Integral) for item in items):
        return {"token_ids": _made(inference_pb2.TokenIds, ids=items)}
    return {"chat": inference_pb2.Chat(messages=[_message(item) for item in items])}


def conversation(messages: Prompt) -> Prompt:
    """Check that a prompt is a sequence of messages. Raises TypeError for text, which would not go through
    the template, and for token ids."""
    if isinstance(messages, str):
        raise TypeError("chat takes messages, such as [Message('user', text)]; generate takes text")
    if "chat" not in _prompt(messages) and len(messages):
        raise TypeError("chat takes messages, such as [Message('user', text)]; generate takes token ids")
    return messages


def _message(item: object) -> inference_pb2.ChatMessage:
    match item:
        case Message(role, content):
            return _made(inference_pb2.ChatMessage, role=role, content=content)
        case Mapping() if item.keys() == {"role", "content"}:
            return _made(inference_pb2.ChatMessage, role=item["role"], content=item["content"])
        case _:
            raise TypeError(
                f"{item!r} is not a chat message: use Message(role, content), or a mapping with "
                "these two keys"
            )


def event(response: inference_pb2.GenerateStreamResponse) -> GenerationEvent | None:
    """One event of a stream; None for a kind that this client does not know yet."""
    match response.WhichOneof("event"):
        case "prompt_info":
            return prompt_info(response.prompt_info)
        case "state":
            state = response.state
            phase = _enum(Phase, inference_pb2.RequestPhase.Name, state.phase, "REQUEST_PHASE_")
            return State(phase, state.position, state.progress)
        case "tokens":
            tokens = response.tokens
            told = _logprobs(tokens.logprobs)
            return Delta(tokens.index, tuple(tokens.token_ids), tokens.text, told, tokens.choice)
        case "prompt_logprobs":
            return prompt_logprobs_of(response.prompt_logprobs)
        case "finish_info":
            return finish(response.finish_info)
        case _:
            return None


def prompt_info(info: inference_pb2.PromptInfo) -> PromptInfo:
    return PromptInfo(info.request_id, info.model, info.n_prompt_tokens, info.max_tokens, info.seed)


_REASONS = {inference_pb2.FINISH_REASON_STOP: "stop", inference_pb2.FINISH_REASON_LENGTH: "length"}


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
        Choice(each.text, tuple(each.token_ids), finish(each.finish_info), _logprobs(each.logprobs))
        for each in response.choices
    )
    first, prompt = choices[0], response.prompt_logprobs
    return Completion(
        first.text,
        first.token_ids,
        prompt_info(response.prompt_info),
        first.finish,
        choices,
        TokenUsage(**_same_named(TokenUsage, response.usage)),
        first.logprobs,
        prompt_logprobs_of(prompt) if prompt.token_ids else None,
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


def metadata(response: inference_pb2.ModelMetadataResponse) -> ModelMetadata:
    return ModelMetadata(
        response.model,
        response.max_context,
        response.vocab_size,
        response.has_chat_template,
        tuple(response.end_token_ids),
        response.embedding.dimensions,
    )


def model(message: models_pb2.Model) -> Model:
    plain = _same_named(Model, message, besides={"residency", "instances", "service"})
    residency = _enum(Residency, models_pb2.Residency.Name, message.residency, "RESIDENCY_")
    return Model(
        residency=residency, instances=tuple(message.instances), service=service(message.service), **plain
    )


def operation(message: operations_pb2.Operation) -> Operation:
    state = _enum(OperationState, operations_pb2.OperationState.Name, message.state, "OPERATION_STATE_")
    return Operation(
        state=state,
        failure=message.error.reason,
        message=message.error.message,
        **_same_named(Operation, message, besides={"state", "failure", "message"}),
    )


def completed(message: operations_pb2.Operation) -> None:
    """Raise CallFailed if an operation failed or was cancelled, as a call would have."""
    if not message.HasField("error"):
        return
    codes = {code.value[0]: code for code in grpc.StatusCode}
    code = codes.get(message.error.code, grpc.StatusCode.UNKNOWN)
    raise CallFailed(code, message.error.message, ErrorDetails(message.error.reason))


def instance(message: pool_pb2.Instance) -> InstanceStatus:
    return InstanceStatus(
        state=_enum(DeviceState, pool_pb2.DeviceState.Name, message.state, "DEVICE_STATE_"),
        resident_models=tuple(message.resident_models),
        pinned_models=tuple(message.pinned_models),
        **_same_named(InstanceStatus, message, besides={"state", "resident_models", "pinned_models"}),
    )


def resize_request(arena_bytes: int, instance: int | None) -> pool_pb2.ResizeDeviceRequest:
    """Raises TypeError or WrongArgument for values that cannot be sent, like the following."""
    return _made(pool_pb2.ResizeDeviceRequest, arena_bytes=arena_bytes, instance=instance)


def drain_request(instance: int, *, undo: bool) -> pool_pb2.DrainDeviceRequest:
    return _made(pool_pb2.DrainDeviceRequest, instance=instance, undo=undo)


def remove_request(instance: int) -> pool_pb2.RemoveDeviceRequest:
    return _made(pool_pb2.RemoveDeviceRequest, instance=instance)


_KINDS = {
    None: pool_pb2.DEVICE_KIND_UNSPECIFIED,
    "cpu": pool_pb2.DEVICE_KIND_CPU,
    "cuda": pool_pb2.DEVICE_KIND_CUDA,
}
_PAGINGS = {
    None: pool_pb2.PAGED_KV_UNSPECIFIED,
    "exact": pool_pb2.PAGED_KV_EXACT,
    "int8": pool_pb2.PAGED_KV_INT8,
}


def add_device_request(
    kind: str | None, arena_bytes: int, gpu: str | int, paged_kv: str | None
) -> pool_pb2.AddDeviceRequest:
    if kind not in _KINDS:
        raise WrongArgument(f"kind: {kind!r} is not a kind of device: write 'cpu' or 'cuda'")
    if paged_kv not in _PAGINGS:
        raise WrongArgument(f"paged_kv: {paged_kv!r} is not a way to page: write 'exact' or 'int8'")
    return _made(
        partial(pool_pb2.AddDeviceRequest, kind=_KINDS[kind]),
        arena_bytes=arena_bytes,
        gpu=str(gpu),
        paged_kv=_PAGINGS[paged_kv],
    )


def service(message: models_pb2.ServiceTotals) -> Service:
    return Service(
        ttft=_durations(message.ttft),
        tpot=_durations(message.tpot),
        gaps=_durations(message.gaps),
        **_same_named(Service, message, besides={"ttft", "tpot", "gaps"}),
    )


def _durations(message: models_pb2.Durations) -> Durations:
    return Durations(tuple(message.counts), message.total_s)


def sizes(message: planning_pb2.ModelSizes) -> ModelSizes:
    return ModelSizes(**_same_named(ModelSizes, message))


def recorded(message: planning_pb2.RecordedRequest) -> RecordedRequest:
    return RecordedRequest(**_same_named(RecordedRequest, message))


def pool_trace(message: pool_pb2.GetTraceResponse) -> PoolTrace:
    return PoolTrace(**_same_named(PoolTrace, message))


def tenant(message: pool_pb2.Tenant) -> Tenant:
    return Tenant(message.name, service(message.service))


def pool_status(message: pool_pb2.PoolStatus) -> PoolStatus:
    return pool_status_of(
        message,
        tuple(map(model, message.models)),
        tuple(map(tenant, message.tenants)),
        tuple(map(instance, message.instances)),
    )


def pool_status_of(
    message: pool_pb2.PoolStatus,
    models: tuple[Model, ...],
    tenants: tuple[Tenant, ...],
    instances: tuple[InstanceStatus, ...],
) -> PoolStatus:
    """The figures of a message, with these models, tenants and instances."""
    return PoolStatus(
        instances=instances,
        models=models,
        tenants=tenants,
        duration_bounds_s=tuple(message.duration_bounds_s),
        **_same_named(PoolStatus, message, besides={"instances", "models", "tenants", "duration_bounds_s"}),
    )


def _same_named(kind: Any, message: Any, besides: Collection[str] = ()) -> dict[str, Any]:
    """The scalar fields of a message for which a dataclass has a field of the same name."""
    return {field.name: getattr(message, field.name) for field in fields(kind) if field.name not in besides}


def _enum(kind: Any, name_of: Any, value: int, prefix: str) -> Any:
    """The member of our enum for a protobuf value, or UNKNOWN."""
    try:
        name = name_of(value).removeprefix(prefix)
    except ValueError:
        return kind.UNKNOWN
    return kind.__members__.get(name, kind.UNKNOWN)
