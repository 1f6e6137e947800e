"""`return_token_ids`: token ids of prompt and output, with which a stream that broke off can go on."""

import asyncio
from typing import Any

import pytest

from tests.server.http_api.http_calls import CHAT, TEXT, answer_with, events, http, usage_of
from tokenmux.messages.commands import Submit

WITH = {"return_token_ids": True}


async def test_whole_answers_have_them() -> None:
    async with http() as (_, client):
        text = (
            await client.post("/v1/completions", json=TEXT | WITH | {"prompt": ["ab", "k"], "n": 2})
        ).json()
        chat = (await client.post("/v1/chat/completions", json=CHAT | WITH)).json()
        plain = (await client.post("/v1/completions", json=TEXT | {"return_token_ids": False})).json()
    said = [(bytes(one["prompt_token_ids"]), bytes(one["token_ids"])) for one in text["choices"]]
    assert said == [(b"ab", b"cde")] * 2 + [(b"k", b"lmn")] * 2
    assert bytes(chat["prompt_token_ids"]) == b"u:a;"
    assert bytes(chat["choices"][0]["token_ids"]).decode() == chat["choices"][0]["message"]["content"]
    assert not {"token_ids", "prompt_token_ids"} & {*plain["choices"][0], *plain}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_no_token_of_a_stream_is_missing(path: str) -> None:
    """Also those whose text is held back, or is none."""
    asked: dict[str, Any] = {"model": "letters", "max_tokens": 9, "stream": True, "stop": ["##"]} | WITH
    asked |= {"prompt": "a"} if path == "/v1/completions" else {"messages": CHAT["messages"]}
    async with http(auto=False) as (served, client):
        asking = asyncio.create_task(client.post(path, json=asked))
        submit = await answer_with(served, "abcdef#")
        chunks = events((await asking).text)[0][:-1]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    ids = [token for choice in choices for token in choice.get("token_ids") or ()]
    assert bytes(ids) == b"abcdef#"
    told = [one["prompt_token_ids"] for one in (*chunks, *choices) if "prompt_token_ids" in one]
    assert told == [list(submit.prompt)]
    texts = [
        choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices
    ]
    assert "".join(texts) == "abcdef#"


async def test_a_stream_that_broke_off_goes_on() -> None:
    """Greedily: its prompt and its tokens are the prompt of the rest."""
    async with http() as (served, client):
        whole = (await client.post("/v1/completions", json=TEXT | WITH | {"max_tokens": 6})).json()[
            "choices"
        ][0]
        held = whole["token_ids"][:2]
        rest = {"prompt": whole["prompt_token_ids"] + held, "max_tokens": 6 - len(held)}
        served.hub.unread()
        again = (await client.post("/v1/completions", json=TEXT | WITH | rest)).json()
        assert (await served.hub.next(Submit)).prompt == (*b"abc",)
    assert held + again["choices"][0]["token_ids"] == whole["token_ids"]
    assert again["usage"] == usage_of(3, 4)
