"""`/v1/completions` and `/v1/chat/completions`: each translates, calls the front, and translates back."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tokenmux.core.errors import InternalError, InvalidRequest
from tokenmux.server.front.api_keys import AUTHORIZATION, Key
from tokenmux.server.front.few_at_once import each
from tokenmux.server.front.generation import Ask, FinishInfo, PromptDelta, PromptInfo, TokenDelta
from tokenmux.server.front.service import FrontService
from tokenmux.server.http_api.answer_forms import AnsweredPrompt, AnswerForm, AnswerHead, WholeOutput
from tokenmux.server.http_api.body_fields import asks_of_body, name_in_body
from tokenmux.server.http_api.body_reader import read_json_body
from tokenmux.server.http_api.client_presence import ClientLeft, while_connected
from tokenmux.server.http_api.event_stream import EventStream
from tokenmux.server.http_api.http_errors import error_answer
from tokenmux.server.http_api.ignored_fields import ignored_header
from tokenmux.server.http_api.json_answers import send_json
from tokenmux.server.http_api.outputs import OutputPiece, OutputReader
from tokenmux.server.http_api.prompt_scores import PromptScores
from tokenmux.server.http_api.request_bodies import GenerationBody, parse_body
from tokenmux.server.http_api.streamed_answer import StreamedAnswer


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
            asks = asks_of_body(body)
            if body.stream:
                await self._stream(asks, body, caller, receive, send)
            else:
                document = await while_connected(self._whole(asks, body, caller), receive)
                await send_json(send, document, _headers(asks, body))
        except InvalidRequest as error:
            error.field = name_in_body(error, body)
            raise

    async def _whole(self, asks: Sequence[Ask], body: GenerationBody, caller: Key | None) -> bytes:
        """The document of an answer in one piece."""

        async def answered(place: int) -> AnsweredPrompt:
            with _about_prompt(place, asks):
                return await self._answered(place, asks[place], body, caller)

        return self._form.whole(self._head(asks, body), await each(len(asks), answered))

    async def _answered(
        self, place: int, ask: Ask, body: GenerationBody, caller: Key | None
    ) -> AnsweredPrompt:
        """All outputs of the prompt at this place."""
        prompt = PromptScores(ask, body.prompt_logprobs)
        readers: list[OutputReader] = []
        pieces: list[list[OutputPiece]] = []
        ends: list[FinishInfo] = []
        token_ids: tuple[int, ...] = ()
        async with self._front.open(ask, caller) as events:
            async for event in events:
                match event:
                    case PromptInfo(prompt=token_ids):  # the front has checked `n`
                        with_ids = bool(body.return_token_ids)
                        readers = [OutputReader(with_token_ids=with_ids) for _ in range(ask.n)]
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
        outputs = [
            WholeOutput(
                OutputPiece.joined(pieces[end.choice]), replace(end, choice=place * ask.n + end.choice)
            )
            for end in ends
        ]
        return AnsweredPrompt(outputs, prompt.listed, token_ids)

    async def _stream(
        self,
        asks: Sequence[Ask],
        body: GenerationBody,
        caller: Key | None,
        receive: Receive,
        send: Send,
    ) -> None:
        stream = EventStream(send)
        answer = StreamedAnswer(self._form, self._head(asks, body), _headers(asks, body), stream, len(asks))
        try:
            await while_connected(self._write(asks, answer, caller), receive, stream.keep_alive)
        except ClientLeft:
            raise
        except Exception as error:
            if not stream.started:
                raise
            # Without [DONE], so that a part is not taken for the whole.
            await stream.data(error_answer(error).content)
        await stream.end()

    async def _write(self, asks: Sequence[Ask], answer: StreamedAnswer, caller: Key | None) -> None:
        """Write a stream up to [DONE]."""

        async def written(place: int) -> list[FinishInfo]:
            ask = asks[place]
            with _about_prompt(place, asks):
                async with self._front.open(ask, caller) as events:
                    return await answer.write(place, ask, events)

        await answer.finish(await each(len(asks), written))

    def _head(self, asks: Sequence[Ask], body: GenerationBody) -> AnswerHead:
        options = body.stream_options
        return AnswerHead(
            id=self._form.id_prefix + asks[0].request_id,
            created=int(time.time()),
            model=body.model,
            with_usage=options is not None and bool(options.include_usage),
            stop_token_ids=frozenset(body.stop_token_ids or ()),
            with_token_ids=bool(body.return_token_ids),
        )


def _headers(asks: Sequence[Ask], body: GenerationBody) -> Sequence[tuple[bytes, bytes]]:
    """The request's id, and which fields of its body were ignored."""
    return [(b"x-request-id", asks[0].request_id.encode()), *ignored_header(body)]


@contextmanager
def _about_prompt(place: int, asks: Sequence[Ask]) -> Iterator[None]:
    """Name the prompt in an error about it, if there are several."""
    try:
        yield
    except InvalidRequest as error:
        if len(asks) == 1 or error.named != "prompt":
            raise
        told = type(error)(f"prompt {place}: {error}", field=f"prompt[{place}]")
        told.details = error.details
        raise told from None
