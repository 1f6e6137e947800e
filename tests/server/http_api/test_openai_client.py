"""OpenAI's own client, unchanged but for the address."""

import openai
import pytest

from tests.server.harness import ServerThread, serving
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
