"""`/v1/completions` and `/v1/chat/completions`: each translates, calls the front, and translates back."""

import time
from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tokenmux.core.errors import InternalError, InvalidRequest
from tokenmux.core.phases import PhaseChanged
from tokenmux.server.front.api_keys import AUTHORIZATION, Key
from tokenmux.server.front.generation import Ask, FinishInfo, PromptDelta, PromptInfo, TokenDelta
from tokenmux.server.front.service import FrontService
from tokenmux.server.http_api.answer_forms import AnswerForm, AnswerHead, WholeOutput
from tokenmux.server.http_api.body_fields import ask_of_body, name_in_body
from tokenmux.server.http_api.body_reader import read_json_body
from tokenmux.server.http_api.client_presence import ClientLeft, while_connected
from tokenmux.server.http_api.event_stream import EventStream, phase_comment
from tokenmux.server.http_api.http_errors import error_answer
from tokenmux.server.http_api.ignored_fields import ignored_header
from tokenmux.server.http_api.json_answers import send_json
from tokenmux.server.http_api.outputs import OutputPiece, OutputReader
from tokenmux.server.http_api.prompt_scores import PromptScores
from tokenmux.server.http_api.request_bodies import GenerationBody, parse_body

Headers = Sequence[tuple[bytes, bytes]]


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
        pieces: list[list[OutputPiece]] = []
        ends: list[FinishInfo] = []
        async with self._front.open(ask, caller) as events:
            async for event in events:
                match event:
                    case PromptInfo():
                        info = event
                        prompt = PromptScores(ask, body.prompt_logprobs)
                        readers = [OutputReader() for _ in range(ask.n)]
                        pieces = [[] for _ in readers]
                    case PromptDelta():
                        tokens = prompt.take(event)
                        for of_choice in pieces:
                            of_choice.append(OutputPiece("", tokens))
                    case TokenDelta(choice=choice):
                        pieces[choice].append(readers[choice].take(event))
                    case FinishInfo():
                        ends.append(event)
        if len(ends) < ask.n:
            raise InternalError("a stream ended without the last event of each choice")
        ends.sort(key=lambda end: end.choice)
        outputs = [WholeOutput(OutputPiece.joined(pieces[end.choice]), end) for end in ends]
        document = self._form.whole(self._head(info, body), outputs, prompt.listed)
        return answer_headers(info, body), document

    async def _stream(
        self,
        ask: Ask,
        body: GenerationBody,
        caller: Key | None,
        receive: Receive,
        send: Send,
    ) -> None:
        stream = EventStream(send)
        try:
            writing = self._write(ask, body, caller, stream)
            await while_connected(writing, receive, stream.keep_alive)
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
        ends: list[FinishInfo] = []
        async with self._front.open(ask, caller) as events:
            async for event in events:
                match event:
                    case PromptInfo():
                        prompt = PromptScores(ask, None)
                        readers = [OutputReader() for _ in range(ask.n)]
                        head = self._head(event, body)
                        await stream.start(answer_headers(event, body))
                    case PhaseChanged():
                        comment = phase_comment(event)
                        if comment is not None:
                            await stream.comment(comment)
                    case PromptDelta():
                        tokens = prompt.take(event)
                        for choice in range(ask.n if tokens else 0):
                            await stream.data(self._form.delta(head, choice, OutputPiece("", tokens)))
                    case TokenDelta(choice=choice):
                        await self._write_piece(stream, head, choice, readers[choice], event)
                    case FinishInfo(choice=choice):
                        await self._write_piece(stream, head, choice, readers[choice], None)
                        ends.append(event)
                        await stream.data(self._form.last(head, event))
        if head.with_usage:
            await stream.data(self._form.usage(head, ends))
        await stream.data(b"[DONE]")

    async def _write_piece(
        self,
        stream: EventStream,
        head: AnswerHead,
        choice: int,
        reader: OutputReader,
        delta: TokenDelta | None,
    ) -> None:
        """Write what a delta has; without one, that the output has begun."""
        if not reader.begun:
            reader.begun = True
            first = self._form.first(head, choice)
            if first is not None:
                await stream.data(first)
        piece = None if delta is None else reader.take(delta)
        if piece:
            await stream.data(self._form.delta(head, choice, piece))

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
    return [(b"x-request-id", info.request.encode()), *ignored_header(body)]
