"""Paths of the fields of a GenerateRequest, such as `sampling.top_k`: the names of features, and of what
errors are about."""

from collections.abc import Collection, Iterator
from dataclasses import fields
from typing import Any

from tokenmux.core.errors import InvalidRequest, UnknownFeature
from tokenmux.server.front.generation import Ask
from tokenmux.v1 import inference_pb2

MAX_REQUIRED = 64

_OTHERWISE_NAMED = {
    "stop_strings": "stopping.strings",
    "stop_token_ids": "stopping.token_ids",
    "skip_special_tokens": "output.keep_special_tokens",
    "continue_final_message": "chat.continue_final_message",
    "cache_salt": "prefix_cache.salt",
    "several_calls": "chat.parallel_tool_calls",
    "tools": "chat.tools",
    "prompt": "prompt",
}
"""Fields of `Ask` whose names in the API differ, or stand at several places."""


def _paths(message: Any, prefix: str = "") -> Iterator[str]:
    for field in message.fields:
        yield prefix + field.name
        inner = field.message_type
        if inner is not None and not inner.GetOptions().map_entry:
            yield from _paths(inner, f"{prefix}{field.name}.")


FEATURES: tuple[str, ...] = tuple(_paths(inference_pb2.GenerateRequest.DESCRIPTOR))
"""Every field that a request can have: a server obeys those that it knows."""

_PLACES = {
    **{path.rpartition(".")[2]: path for path in reversed(FEATURES)},
    **_OTHERWISE_NAMED,
}
_ASK_FIELDS = frozenset(field.name for field in fields(Ask))


def path_of(error: InvalidRequest) -> str | None:
    """The field that an error is about, as its path in the request; None if it names none."""
    head, mark, rest = error.named.partition("[")
    if head in _ASK_FIELDS or head in _PLACES:
        return _PLACES.get(head, head) + mark + rest
    return error.field


def check_features(required: Collection[str]) -> None:
    """Raise UnknownFeature if a request relies on what this server does not know."""
    if len(required) > MAX_REQUIRED:
        raise InvalidRequest(
            f"required_features has {len(required)} names: at most {MAX_REQUIRED} are allowed",
            field="required_features",
            limit=MAX_REQUIRED,
            given=len(required),
        )
    unknown = sorted({name[:100] for name in required} - {*FEATURES})
    if unknown:
        raise UnknownFeature(
            f"this server does not know {', '.join(map(repr, unknown))}: ask a newer one, or leave out of "
            "required_features what the request can do without; ServerMetadata lists what this one knows",
            features=",".join(unknown),
        )
