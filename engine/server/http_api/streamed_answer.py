"""One answer in chunks: what the front says of a prompt, or of several at once, as it comes."""

import asyncio
from collections.abc import AsyncIterable, Sequence
from dataclasses import replace

from tokenmux.core.phases import PhaseChanged
from tokenmux.server.front.few_at_once import MAX_AT_ONCE
from tokenmux.server.front.generation import (
    Ask,
    FinishInfo,
    PromptDelta,
    PromptInfo,
    StreamEvent,
    TokenDelta,
)
from tokenmux.server.http_api.answer_forms import AnswerForm, AnswerHead
from tokenmux.server.http_api.event_stream import EventStream, phase_comment
from tokenmux.server.http_api.outputs import OutputPiece, OutputReader
from tokenmux.server.http_api.prompt_scores import PromptScores


class StreamedAnswer:
    """Writes the chunks. Nothing is sent before the front has taken all of the first prompts: if it refuses
    one, the answer is an error and no stream."""

    def __init__(
        self,
        form: AnswerForm,
        head: AnswerHead,
        headers: Sequence[tuple[bytes, bytes]],
        stream: EventStream,
        n_prompts: int,
    ) -> None:
        self._form = form
        self._head = head
        self._headers = headers
        self._stream = stream
        self._n_awaited = min(n_prompts, MAX_AT_ONCE)
        self._begun = asyncio.Event()

    async def write(self, place: int, ask: Ask, events: AsyncIterable[StreamEvent]) -> list[FinishInfo]:
        """Write the outputs of the prompt at this place. Returns how they ended."""
        ends: list[FinishInfo] = []
        n_before = place * ask.n
        readers: list[OutputReader] = []
        prompt = PromptScores(ask, None)
        token_ids: tuple[int, ...] = ()
        async for event in events:
            match event:
                case PromptInfo(prompt=token_ids):  # the front has checked `n`
                    with_ids = self._head.with_token_ids
                    readers = [OutputReader(with_token_ids=with_ids) for _ in range(ask.n)]
                    await self._taken()
                case PhaseChanged():
                    comment = phase_comment(event)
                    if comment is not None:
                        await self._stream.comment(comment)
                case PromptDelta():
                    tokens = prompt.take(event)
                    for choice in range(ask.n if tokens else 0):
                        await self._piece(n_before + choice, OutputPiece("", tokens))
                case TokenDelta(choice=choice):
                    await self._begin(n_before + choice, readers[choice], token_ids)
                    await self._piece(n_before + choice, readers[choice].take(event))
                case FinishInfo(choice=choice):
                    await self._begin(n_before + choice, readers[choice], token_ids)
                    end = replace(event, choice=n_before + choice)
                    ends.append(end)
                    await self._stream.data(self._form.last(self._head, end))
        return ends

    async def finish(self, ends: Sequence[Sequence[FinishInfo]]) -> None:
        """Write what follows the last output; `ends` are those of each prompt."""
        if self._head.with_usage:
            await self._stream.data(self._form.usage(self._head, ends))
        await self._stream.data(b"[DONE]")

    async def _taken(self) -> None:
        """The front has taken a prompt. Returns once the stream has begun."""
        self._n_awaited -= 1
        if not self._n_awaited:
            await self._stream.start(self._headers)
            self._begun.set()
        await self._begun.wait()

    async def _begin(self, choice: int, reader: OutputReader, prompt: Sequence[int]) -> None:
        """Write that an output of a prompt has begun, once."""
        if not reader.begun:
            reader.begun = True
            first = self._form.first(self._head, choice, prompt)
            if first is not None:
                await self._stream.data(first)

    async def _piece(self, choice: int, piece: OutputPiece) -> None:
        if piece:
            await self._stream.data(self._form.delta(self._head, choice, piece))
