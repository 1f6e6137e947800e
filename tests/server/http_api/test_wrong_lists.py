"""A body has room for a million wrong items; what is said of them takes no longer than for one."""

from typing import Any

import pytest
from pydantic import ValidationError

from tokenmux.core.errors import InvalidRequest
from tokenmux.server.http_api.body_fields import Lenient
from tokenmux.server.http_api.embedding_bodies import EmbeddingBody
from tokenmux.server.http_api.request_bodies import ChatBody, CompletionBody

MANY = 100
"""Fewer than the tools that a body may have."""
TEXT: dict[str, Any] = {"model": "m", "prompt": "a"}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("kind", "body", "field", "item"),
    [
        *((CompletionBody, TEXT, "prompt", item) for item in (1.5, None, {}, [[]], [1.5])),
        *((CompletionBody, TEXT, field, None) for field in ("stop", "stop_token_ids", "bad_words")),
        *((ChatBody, CHAT, field, {}) for field in ("messages", "tools")),
        (ChatBody, CHAT, "documents", 1),
        *((EmbeddingBody, {"model": "m"}, "input", item) for item in (1.5, None, [None])),
    ],
)
def test_the_first_wrong_item_is_the_last_one_looked_at(
    kind: type[Lenient], body: dict[str, Any], field: str, item: Any
) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({**body, field: [item] * MANY})
    assert caught.value.error_count() < 20


@pytest.mark.parametrize("given", [{"content": [1] * MANY}, {"tool_calls": [1] * MANY}])
def test_that_holds_within_a_message(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate({"model": "m", "messages": [{"role": "user", **given}]})
    assert caught.value.error_count() < 20


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionBody, {"prompt": [None] * 257}),
        (CompletionBody, {"prompt": "a", "logit_bias": {str(token): None for token in range(1025)}}),
        (EmbeddingBody, {"input": [None] * 2049}),
        (ChatBody, {"messages": [None] * 4097}),
        (ChatBody, {"messages": [], "tools": [None] * 129}),
        (ChatBody, {"messages": [], "documents": [None] * 129}),
        (ChatBody, {"messages": [{"role": "user", "content": [None] * 4097}]}),
        (ChatBody, {"messages": [{"role": "assistant", "tool_calls": [None] * 1025}]}),
    ],
)
def test_too_many_are_refused_before_they_are_looked_at(kind: type[Lenient], body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="at most"):
        kind.model_validate({"model": "m", **body})
