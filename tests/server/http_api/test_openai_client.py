"""OpenAI's own client, unchanged but for the address."""

import asyncio
import json
from typing import Any

import openai
import pydantic
import pytest

from tests.server.harness import ServerThread, serving
from tests.server.http_api.http_calls import answer_with
from tests.server.scripted_models import FakeEntry, LetterTokenizer, facts
from tokenmux.server.front.api_keys import Key, Scope
from tokenmux.server.http_api.http_server import HttpTransport

KEYS = (Key.of("one", Scope.INFERENCE, "secret"),)


def base_url(port: int | None) -> str:
    return f"http://127.0.0.1:{port}/v1"


def test_the_blocking_client() -> None:
    with (
        ServerThread(lambda: serving(http=HttpTransport(), keys=KEYS)) as server,
        openai.OpenAI(base_url=base_url(server.served.http_port), api_key="secret") as client,
    ):
        assert [model.id for model in client.models.list()] == ["letters"]
        assert client.models.retrieve("letters").owned_by == "tokenmux"
        text = client.completions.create(model="letters", prompt="a", max_tokens=3)
        assert text.choices[0].text == "bcd"
        assert text._request_id is not None
        assert text.id == f"cmpl-{text._request_id}"
        chat = client.chat.completions.create(
            model="letters", messages=[{"role": "user", "content": "a"}], max_completion_tokens=3
        )
        assert chat.choices[0].message.content == "<=>"
        assert chat.usage is not None
        assert chat.usage.total_tokens == 7
        stream = client.chat.completions.create(
            model="letters",
            messages=[{"role": "user", "content": "a"}],
            max_tokens=3,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"top_k": 5, "ignore_eos": True},
        )
        chunks = list(stream)
        texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(texts) == "<=>"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 3
        assert chunks[-2].choices[0].finish_reason == "length"


def test_errors_are_those_of_the_client() -> None:
    with ServerThread(lambda: serving(http=HttpTransport(), keys=KEYS)) as server:
        url = base_url(server.served.http_port)
        with openai.OpenAI(base_url=url, api_key="secret") as client:
            with pytest.raises(openai.NotFoundError, match="no model named 'other'"):
                client.completions.create(model="other", prompt="a")
            with pytest.raises(openai.BadRequestError, match="temperature 11") as caught:
                client.completions.create(model="letters", prompt="a", temperature=11)
            assert caught.value.param == "temperature"
            with pytest.raises(openai.BadRequestError, match="suffix is not served"):
                client.completions.create(model="letters", prompt="a", suffix="b")
        with (
            openai.OpenAI(base_url=url, api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()


async def test_the_asyncio_client() -> None:
    async with (
        serving(http=HttpTransport()) as served,
        openai.AsyncOpenAI(base_url=base_url(served.http_port), api_key="none") as client,
    ):
        stream = await client.completions.create(model="letters", prompt="a", max_tokens=3, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "bcd"
        served.front.end_streams()
        client.max_retries = 0
        with pytest.raises(openai.InternalServerError, match="has stopped"):
            await client.completions.create(model="letters", prompt="a")


@pytest.mark.parametrize("stream", [True, False])
async def test_tools_are_called(stream: bool) -> None:
    """A call, its result, and the answer, as an application has them."""
    letters = LetterTokenizer(template="{{ tools }}<tool_call>")
    messages: list[Any] = [{"role": "user", "content": "a"}]
    async with (
        serving(FakeEntry(facts("letters"), letters=letters), auto=False, http=HttpTransport()) as served,
        openai.AsyncOpenAI(base_url=base_url(served.http_port), api_key="none") as client,
    ):
        asking = asyncio.create_task(_called(client, messages, stream=stream))
        await answer_with(served, CALL)
        name, arguments, call_id = await asking
        assert (name, json.loads(arguments)) == ("weather", {"city": "Bern"})
        function: Any = {"name": name, "arguments": arguments}
        messages += [
            {"role": "assistant", "tool_calls": [{"id": call_id, "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": call_id, "content": "5 C"},
        ]
        answering = asyncio.create_task(
            client.chat.completions.create(model="letters", messages=messages, tools=TOOLS)
        )
        submit = await answer_with(served, "It is cold.")
        assert "t:5 C;" in "".join(map(chr, submit.prompt))
        assert (await answering).choices[0].message.content == "It is cold."


TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'


async def _called(client: openai.AsyncOpenAI, messages: list[Any], *, stream: bool) -> tuple[str, str, str]:
    """The name, arguments and id of the only call."""
    if not stream:
        answer = await client.chat.completions.create(model="letters", messages=messages, tools=TOOLS)
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = answer.choices[0].message.tool_calls or ()
        assert call.type == "function"
        return call.function.name, call.function.arguments, call.id
    async with client.chat.completions.stream(model="letters", messages=messages, tools=TOOLS) as events:
        final = await events.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    (done,) = final.choices[0].message.tool_calls or ()
    return done.function.name, done.function.arguments, done.id


def test_choices_have_the_types_of_the_client() -> None:
    with (
        ServerThread(lambda: serving(http=HttpTransport())) as server,
        openai.OpenAI(base_url=base_url(server.served.http_port), api_key="none") as client,
    ):
        chat = client.chat.completions.create(
            model="letters", messages=[{"role": "user", "content": "a"}], n=2, max_tokens=3
        )
        assert [choice.message.content for choice in chat.choices] == ["<=>", "<=>"]
        text = client.completions.create(model="letters", prompt="a", max_tokens=3, n=2, stream=True)
        found = ["", ""]
        for chunk in text:
            found[chunk.choices[0].index] += chunk.choices[0].text
        assert found == ["bcd", "bcd"]


class Weather(pydantic.BaseModel):
    """What an application wants to be told."""

    city: str
    days: list[int]


async def test_an_answer_is_parsed_into_a_class() -> None:
    async with (
        serving(auto=False, http=HttpTransport()) as served,
        openai.AsyncOpenAI(base_url=base_url(served.http_port), api_key="none") as client,
    ):
        asking = asyncio.create_task(
            client.chat.completions.parse(
                model="letters", messages=[{"role": "user", "content": "a"}], response_format=Weather
            )
        )
        submit = await answer_with(served, '{"city": "Bern", "days": [1, 2]}')
        assert submit.grammar is not None
        assert '"days"' in submit.grammar.source, "the schema of the class"
        assert (await asking).choices[0].message.parsed == Weather(city="Bern", days=[1, 2])
