"""Questions of clients, from messages to the front's values.

The only check here is for more than is worth converting: `tokenmux.server.front.request_rules` judges
requests.
"""

from tokenmux.core.errors import InvalidRequest
from tokenmux.server.front.constraint_rules import MAX_CHOICES, choice_of
from tokenmux.server.front.counts import check_count
from tokenmux.server.front.generation import (
    Ask,
    Chat,
    Constraint,
    Delivered,
    Text,
    TokenIds,
)
from tokenmux.server.front.request_rules import (
    MAX_SECONDS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MIN_SECONDS,
)
from tokenmux.server.front.sampling_rules import MAX_BAD_WORDS, MAX_BIASES, MAX_FORBIDDEN_TOKENS
from tokenmux.server.grpc_api.chat_messages import chat_of, tool_choice_of
from tokenmux.server.grpc_api.field_paths import check_features
from tokenmux.v1 import inference_pb2

MAX_DELIVERED = 128
"""More choices than any server serves in one call."""


def ask_of(request: inference_pb2.GenerateRequest, remaining_s: float | None = None) -> Ask:
    """The question in a request, whose call has a deadline in `remaining_s` if it has one.

    Raises InvalidRequest if there is no prompt, or if there are more strings, ids or messages than are worth
    copying; UnknownFeature if it relies on what this server does not know.
    """
    check_features(request.required_features)
    sampling, stopping, level = request.sampling, request.stopping, request.service_level
    output, cache, chat = request.output, request.prefix_cache, request.chat
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
        tool_choice=tool_choice_of(chat.tool_choice) if chat.HasField("tool_choice") else None,
        several_calls=chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else True,
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
