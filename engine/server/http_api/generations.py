"""`/v1/completions` and `/v1/chat/completions`: each translates, calls the front, and translates back."""

import re
import time
from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tokenmux.core.errors import InternalError, InvalidRequest
from tokenmux.core.phases import PhaseChanged
from tokenmux.server.front.api_keys import AUTHORIZATION, Key
from tokenmux.server.front.generation import Ask, FinishInfo, PromptInfo, TokenDelta
from tokenmux.server.front.service import FrontService
from tokenmux.server.http_api.answer_forms import AnswerForm, AnswerHead, OutputPiece
from tokenmux.server.http_api.body_fields import ask_of_body, ignored_names, name_in_body
from tokenmux.server.http_api.body_reader import read_json_body
from tokenmux.server.http_api.client_presence import ClientLeft, while_connected
from tokenmux.server.http_api.event_stream import EventStream, phase_comment
from tokenmux.server.http_api.http_errors import error_answer
from tokenmux.server.http_api.json_answers import send_json
from tokenmux.server.http_api.request_bodies import GenerationBody, parse_body
from tokenmux.server.http_api.scored_tokens import ScoredToken, TokenScorer

Headers = Sequence[tuple[bytes, bytes]]

MAX_IGNORED_NAMES = 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Generations:
    """One of the two paths, as an ASGI application."""

    def __init__(
        self, front: FrontService, kind: type[GenerationBody], form: AnswerForm, max_bytes: int
    ) -> None:
        self._front = front
        self._kind = kind
        self._form = form
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        caller = self._front.keys.caller(request.headers.get(AUTHORIZATION))
        body = parse_body(self._kind, await read_json_body(request, self._max_bytes))
        try:
            ask = ask_of_body(body)
            if body.stream:
                await self._stream(ask, body, caller, receive, send)
            else:
                headers, document = await while_connected(self._whole(ask, body, caller), receive)
                await send_json(send, document, headers)
        except InvalidRequest as error:
            error.field = name_in_body(error, body)
            raise

    async def _whole(self, ask: Ask, body: GenerationBody, caller: Key | None) -> tuple[Headers, bytes]:
        """The headers and the document of an answer in one piece."""
        texts: list[str] = []
        tokens: list[ScoredToken] = []
        scorer = TokenScorer()
        async with self._front.open(ask, caller) as events:
            async for event in events:
                match event:
                    case PromptInfo():
                        info = event
                    case TokenDelta():
                        texts.append(event.text)
                        tokens += scorer.of(event)
                    case FinishInfo():
                        piece = OutputPiece("".join(texts), tuple(tokens))
                        document = self._form.whole(self._head(info, body), piece, event)
                        return answer_headers(info, body), document
        raise InternalError("a stream ended without its last event")

    async def _stream(
        self, ask: Ask, body: GenerationBody, caller: Key | None, receive: Receive, send: Send
    ) -> None:
        stream = EventStream(send)
        try:
            await while_connected(self._write(ask, body, caller, stream), receive, stream.keep_alive)
        except ClientLeft:
            raise
        except Exception as error:
            if not stream.started:
                raise
            # Without [DONE], so that a part is not taken for the whole.
            await stream.data(error_answer(error).content)
        await stream.end()

    async def _write(self, ask: Ask, body: GenerationBody, caller: Key | None, stream: EventStream) -> None:
        """Write the stream up to [DONE]. A front that refuses does so before anything is sent."""
        form, begun, scorer = self._form, False, TokenScorer()
        async with self._front.open(ask, caller) as events:
            async for event in events:
                match event:
                    case PromptInfo():
                        head = self._head(event, body)
                        await stream.start(answer_headers(event, body))
                    case PhaseChanged():
                        comment = phase_comment(event)
                        if comment is not None:
                            await stream.comment(comment)
                    case TokenDelta():
                        if not begun:
                            begun = True
                            await self._begin(stream, head)
                        piece = OutputPiece(event.text, scorer.of(event))
                        if piece.text or piece.tokens:
                            await stream.data(form.delta(head, piece))
                    case FinishInfo():
                        await stream.data(form.last(head, event))
                        if head.with_usage:
                            await stream.data(form.usage(head, event))
        await stream.data(b"[DONE]")

    async def _begin(self, stream: EventStream, head: AnswerHead) -> None:
        first = self._form.first(head)
        if first is not None:
            await stream.data(first)

    def _head(self, info: PromptInfo, body: GenerationBody) -> AnswerHead:
        options = body.stream_options
        return AnswerHead(
            id=self._form.id_prefix + info.request,
            created=int(time.time()),
            model=info.model,
            with_usage=options is not None and bool(options.include_usage),
            stop_token_ids=frozenset(body.stop_token_ids or ()),
        )


def answer_headers(info: PromptInfo, body: GenerationBody) -> Headers:
    """The request's id, and which fields of its body were ignored."""
    headers = [(b"x-request-id", info.request.encode())]
    ignored = [name for name in ignored_names(body) if _PLAIN_NAME.fullmatch(name)]
    if ignored:
        headers.append((b"x-tokenmux-ignored", ", ".join(ignored[:MAX_IGNORED_NAMES]).encode()))
    return headers
