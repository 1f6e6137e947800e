"""`/v1/embeddings`: translates, calls the front, and translates back."""

import base64
import struct
from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tokenmux.core.errors import InvalidRequest
from tokenmux.server.front.api_keys import AUTHORIZATION
from tokenmux.server.front.embeddings import EmbedAsk, Embedded
from tokenmux.server.front.generation import Text, TokenIds
from tokenmux.server.front.service import FrontService
from tokenmux.server.http_api.body_fields import check_served
from tokenmux.server.http_api.body_reader import read_json_body
from tokenmux.server.http_api.client_presence import while_connected
from tokenmux.server.http_api.embedding_bodies import (
    EmbeddingBody,
    EmbeddingItem,
    EmbeddingList,
    EmbeddingUsage,
)
from tokenmux.server.http_api.ignored_fields import ignored_header
from tokenmux.server.http_api.json_answers import send_json
from tokenmux.server.http_api.request_bodies import parsed

_FIELDS = {"tenant": "user"}
"""Names of fields that are others in this dialect."""


class EmbeddingPath:
    """The path, as an ASGI application."""

    def __init__(self, front: FrontService, max_bytes: int) -> None:
        self._front = front
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        caller = self._front.keys.caller(request.headers.get(AUTHORIZATION))
        body = parsed(EmbeddingBody, await read_json_body(request, self._max_bytes))
        try:
            check_served(body.model_extra or {})
            ask = _ask_of(body)
            embedded = await while_connected(self._front.embed(ask, caller), receive)
        except InvalidRequest as error:
            error.field = _field_of(error, body)
            raise
        await send_json(send, _document(body, embedded), ignored_header(body))


def _ask_of(body: EmbeddingBody) -> EmbedAsk:
    return EmbedAsk(
        body.model,
        _inputs_of(body.input),
        body.dimensions,
        body.user or "",
        1.0 if body.weight is None else body.weight,
        body.timeout_s,
    )


def _inputs_of(given: str | Sequence[str] | Sequence[int] | Sequence[list[int]]) -> Sequence[Text | TokenIds]:
    if isinstance(given, str):
        return (Text(given),)
    found: list[Text | TokenIds] = []
    ids = [one for one in given if isinstance(one, int)]
    if ids:
        return (TokenIds(ids),)
    for one in given:
        if isinstance(one, str):
            found.append(Text(one))
        elif isinstance(one, list):
            found.append(TokenIds(one))
    return found


def _field_of(error: InvalidRequest, body: EmbeddingBody) -> str | None:
    """The place in the body that an error of the front is about."""
    field = error.named
    if field.startswith("inputs"):
        is_list = isinstance(body.input, list) and bool(body.input) and not isinstance(body.input[0], int)
        return "input" + field.removeprefix("inputs") if is_list else "input"
    named = _FIELDS.get(field, field)
    return named if named in EmbeddingBody.model_fields else error.field


def _document(body: EmbeddingBody, embedded: Sequence[Embedded]) -> bytes:
    n_tokens = sum(one.n_prompt for one in embedded)
    answer = EmbeddingList(
        object="list",
        data=[
            EmbeddingItem(object="embedding", index=place, embedding=_shown(one, body.encoding_format))
            for place, one in enumerate(embedded)
        ],
        model=body.model,
        usage=EmbeddingUsage(prompt_tokens=n_tokens, total_tokens=n_tokens),
    )
    return answer.model_dump_json().encode()


def _shown(one: Embedded, encoding_format: str | None) -> list[float] | str:
    """The numbers as float32: the same in both formats."""
    packed = struct.pack(f"<{len(one.values)}f", *one.values)
    if encoding_format == "base64":
        return base64.b64encode(packed).decode()
    return list(struct.unpack(f"<{len(one.values)}f", packed))
