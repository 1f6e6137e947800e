"""The prefix cache in the dialect: what requests ask of it, and what answers tell of it."""

import asyncio

import pytest

from tests.server.http_api.http_calls import CHAT, TEXT, events, http, usage_of
from tokenmux.core.request import FinishReason
from tokenmux.messages.commands import Submit
from tokenmux.messages.reports import Finished, Tokens


@pytest.mark.parametrize("body", [CHAT, TEXT], ids=["chat", "text"])
async def test_usage_tells_how_much_of_the_prompt_was_cached(body: dict[str, object]) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    n_prompt = 4 if "messages" in body else 1
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    async with http() as (served, client):
        served.hub.n_cached = 1
        whole = (await client.post(path, json=body)).json()
        chunks, _ = events((await client.post(path, json=streamed)).text)
    assert whole["usage"] == usage_of(n_prompt, 3, n_cached=1)
    assert chunks[-2]["usage"] == whole["usage"]


async def test_of_several_choices_the_least_counts() -> None:
    async with http(auto=False) as (served, client):
        answer = asyncio.create_task(client.post("/v1/completions", json=TEXT | {"n": 2, "prompt": "abc"}))
        for n_cached in (2, 1):
            request = (await served.hub.next(Submit)).request.id
            served.hub.post(Tokens(request, 0, (100,), 100.0, n_cached=n_cached))
            served.hub.post(Finished(request, FinishReason.LENGTH, 100.0))
        assert (await answer).json()["usage"] == usage_of(3, 2, n_cached=1)


async def test_what_a_request_asks_of_the_cache_arrives() -> None:
    async with http() as (served, client):
        for asked in ({"cache_salt": "pepper"}, {"cache_prompt": False}, {"cache_salt": None}):
            answer = await client.post("/v1/completions", json=TEXT | asked)
            assert "x-tokenmux-ignored" not in answer.headers
        submits = [await served.hub.next(Submit) for _ in range(3)]
    found = [(submit.prefix_cache, submit.cache_salt) for submit in submits]
    assert found == [(True, "pepper"), (False, None), (True, None)]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"cache_salt": ""}, "has 0 characters: use 1 to 256"),
        ({"cache_salt": "x" * 257}, "has 257 characters: use 1 to 256"),
        ({"cache_salt": 7}, "cache_salt: should be a valid string"),
        ({"cache_prompt": "no"}, "cache_prompt: should be a valid boolean"),
    ],
    ids=["empty", "long", "number", "text"],
)
async def test_what_cannot_be_asked_of_it_is_refused(asked: dict[str, object], said: str) -> None:
    async with http() as (_, client):
        answer = await client.post("/v1/completions", json=TEXT | asked)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, next(iter(asked)))
    assert said in error["message"]


async def test_the_openapi_document_tells_of_it() -> None:
    async with http() as (_, client):
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    for body in ("CompletionBody", "ChatBody"):
        for field in ("cache_salt", "cache_prompt"):
            assert "KV of the prompt" in schemas[body]["properties"][field]["description"]
    assert "prefix\ncache had them" in schemas["PromptTokensBody"]["description"]
