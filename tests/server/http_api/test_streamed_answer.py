"""The chunks of an answer begin when the front has taken every prompt."""

import asyncio
from collections.abc import AsyncIterator

from starlette.types import Message

from tokenmux.core.facts import ModelId
from tokenmux.server.front.generation import Ask, PromptInfo, StreamEvent, Text
from tokenmux.server.http_api.answer_forms import AnswerHead, TextForm
from tokenmux.server.http_api.event_stream import EventStream
from tokenmux.server.http_api.streamed_answer import StreamedAnswer

HEAD = AnswerHead("cmpl-1", 0, "m", with_usage=False, stop_token_ids=frozenset())
ASK = Ask("m", Text("a"))


async def events() -> AsyncIterator[StreamEvent]:
    yield PromptInfo("1", ModelId("m"), 1, 1, 0)


async def test_nothing_is_sent_before_all_prompts_are_taken() -> None:
    """A refusal of the second is an error then, with its own status."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    answer = StreamedAnswer(TextForm(), HEAD, [], EventStream(send), n_prompts=2)
    first = asyncio.create_task(answer.write(0, ASK, events()))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not sent
    assert not first.done()
    await answer.write(1, ASK, events())
    await first
    assert [message["type"] for message in sent] == ["http.response.start"]
