"""Requests for generation, of the caller's arguments."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Unpack

from tokenmux.client.errors import WrongArgument
from tokenmux.client.message_making import json_text, made, text_list
from tokenmux.client.options import GenerateOptions
from tokenmux.client.prompt_requests import prompt_field
from tokenmux.client.values import Prompt
from tokenmux.v1 import inference_pb2


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
    tool_choice: str | Mapping[str, Any] | None = None,
    parallel_tool_calls: bool | None = None,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    prefix_cache: bool = True,
    cache_salt: str | None = None,
    tenant: str = "",
    weight: float | None = None,
) -> inference_pb2.GenerateRequest:
    """The request for the caller's arguments. Raises TypeError or WrongArgument for values that cannot be
    sent."""
    given = prompt_field(prompt)
    chosen = tool_choice is not None or parallel_tool_calls is not None
    if tools or documents or chat_template_kwargs or continue_final_message or chosen:
        if "chat" not in given:
            raise WrongArgument(
                "tools, tool_choice, documents, chat_template_kwargs and continue_final_message are for "
                "conversations: give messages as the prompt"
            )
        given["chat"].MergeFrom(
            made(
                inference_pb2.Chat,
                tools=[json_text("tools", tool) for tool in tools],
                documents=[json_text("documents", document) for document in documents],
                template_arguments_json=json_text("chat_template_kwargs", chat_template_kwargs),
                continue_final_message=continue_final_message,
                tool_choice=_tool_choice(tool_choice),
                parallel_tool_calls=parallel_tool_calls,
            )
        )
    return made(
        inference_pb2.GenerateRequest,
        model=model,
        sampling=made(
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
            bad_words=text_list("bad_words", bad_words),
        ),
        stopping=made(
            inference_pb2.Stopping,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            strings=[stop] if isinstance(stop, str) else stop,
            token_ids=stop_token_ids,
            ignore_end_tokens=ignore_end_tokens,
            include_stop_string=include_stop_string,
        ),
        service_level=made(inference_pb2.ServiceLevel, ttft_s=ttft_s, tpot_s=tpot_s),
        tenant=tenant,
        weight=weight,
        n=n,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        truncate_prompt_tokens=truncate_prompt_tokens,
        request_id=request_id,
        output=made(inference_pb2.OutputOptions, echo=echo, keep_special_tokens=keep_special_tokens),
        constraint=_constraint(json_schema, json_object, regex, grammar, choice),
        prefix_cache=_cache_options(prefix_cache, cache_salt),
        **given,
    )


def stream_request(
    model: str, prompt: Prompt, **options: Unpack[GenerateOptions]
) -> inference_pb2.GenerateStreamRequest:
    """The same, to be streamed."""
    return inference_pb2.GenerateStreamRequest(request=generate_request(model, prompt, **options))


def cancel_request(request_id: str, tenant: str) -> inference_pb2.CancelGenerationRequest:
    return made(inference_pb2.CancelGenerationRequest, request_id=request_id, tenant=tenant)


def _constraint(
    json_schema: str | Mapping[str, object] | None,
    json_object: bool,
    regex: str | None,
    grammar: str | None,
    choice: Sequence[str] | None,
) -> inference_pb2.Constraint | None:
    if json_schema is not None and not isinstance(json_schema, str):
        json_schema = json_text("json_schema", json_schema)
    strings = None if choice is None else list(text_list("choice", choice))
    given = {
        "json_schema": json_schema,
        "json_object": json_object or None,
        "regex": regex,
        "grammar": grammar,
        "choices": None if strings is None else made(inference_pb2.Constraint.Choices, strings=strings),
    }
    said = {name: value for name, value in given.items() if value is not None}
    if len(said) > 1:
        raise WrongArgument(f"{' and '.join(said)} cannot be held to at once: give one of them")
    return made(inference_pb2.Constraint, **said) if said else None


_TOOL_MODES = {
    "auto": inference_pb2.TOOL_MODE_AUTO,
    "none": inference_pb2.TOOL_MODE_NONE,
    "required": inference_pb2.TOOL_MODE_REQUIRED,
    "text": inference_pb2.TOOL_MODE_TEXT,
}


def _tool_choice(choice: str | Mapping[str, Any] | None) -> inference_pb2.ToolChoice | None:
    match choice:
        case None:
            return None
        case str() if choice in _TOOL_MODES:
            return inference_pb2.ToolChoice(mode=_TOOL_MODES[choice])
        case {"function": {"name": name}}:
            return made(inference_pb2.ToolChoice, name=name)
        case _:
            raise WrongArgument(
                f"tool_choice: {choice!r} is not a choice: write {', '.join(map(repr, _TOOL_MODES))}, or "
                '{"type": "function", "function": {"name": ...}}'
            )


def _cache_options(prefix_cache: bool, cache_salt: str | None) -> inference_pb2.PrefixCacheOptions | None:
    if prefix_cache and cache_salt is None:
        return None
    return made(
        inference_pb2.PrefixCacheOptions,
        off=not prefix_cache,
        salt=cache_salt,
    )
