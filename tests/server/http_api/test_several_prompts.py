"""A body of `/v1/completions` with several prompts: each is a request, and the choices follow each other."""

import asyncio
from typing import Any

import openai
import pytest

from tests.server.http_api.http_calls import TEXT, answer_with, events, http, nothing_lives, usage_of
from tokenmux.messages.commands import Cancel, Submit
from tokenmux.server.front.few_at_once import MAX_AT_ONCE
from tokenmux.server.front.limits import Limits
from tokenmux.server.http_api.request_bodies import MAX_PROMPTS

BOTH = TEXT | {"prompt": ["a", "c"], "max_tokens": 2}


def texts(documents: list[Any]) -> dict[int, str]:
    """What each choice says."""
    said: dict[int, str] = {}
    for document in documents:
        for choice in document["choices"]:
            said[choice["index"]] = said.get(choice["index"], "") + choice["text"]
    return said


@pytest.mark.parametrize("prompt", [["a", "c"], [[97], [99]]])
async def test_choices_are_in_the_order_of_the_prompts(prompt: list[Any]) -> None:
    async with http() as (_, client):
        answer = (await client.post("/v1/completions", json=BOTH | {"prompt": prompt})).json()
    assert [(one["index"], one["text"]) for one in answer["choices"]] == [(0, "bc"), (1, "de")]
    assert answer["usage"] == usage_of(2, 4)


async def test_each_prompt_has_its_choices_and_what_is_told_of_it() -> None:
    asked = BOTH | {"n": 2, "echo": True, "prompt_logprobs": 0}
    async with http() as (_, client):
        answer = (await client.post("/v1/completions", json=asked | {"prompt": ["ab", "cd"]})).json()
    assert [one["text"] for one in answer["choices"]] == ["abcd", "abcd", "cdef", "cdef"]
    assert [one["index"] for one in answer["choices"]] == [0, 1, 2, 3]
    likely = [one["prompt_logprobs"][1] for one in answer["choices"]]
    assert [list(one) for one in likely] == [["98"], ["98"], ["100"], ["100"]]
    assert answer["usage"] == usage_of(4, 8)


async def test_a_stream_has_all_of_them_under_one_id() -> None:
    asked = BOTH | {"stream": True, "stream_options": {"include_usage": True}, "request_id": "mine"}
    async with http() as (_, client):
        answer = await client.post("/v1/completions", json=asked)
    documents, _ = events(answer.text)
    assert documents.pop() == "[DONE]"
    assert {one["id"] for one in documents} == {"cmpl-mine"}
    assert answer.headers["x-request-id"] == "mine"
    assert texts(documents) == {0: "bc", 1: "de"}
    ends = [c["index"] for one in documents for c in one["choices"] if c["finish_reason"] == "length"]
    assert sorted(ends) == [0, 1]
    assert documents[-1]["usage"] == usage_of(2, 4)


async def test_openais_client_sends_lists() -> None:
    async with (
        http() as (served, _),
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{served.http_port}/v1", api_key="none") as client,
    ):
        answer = await client.completions.create(model="letters", prompt=["a", "c", "e"], max_tokens=1)
        assert [choice.text for choice in answer.choices] == ["b", "d", "f"]


async def test_many_prompts_take_few_places_at_once() -> None:
    async with http(limits=Limits(max_requests=MAX_AT_ONCE)) as (_, client):
        answer = await client.post("/v1/completions", json=BOTH | {"prompt": ["a"] * 100})
        assert [one["text"] for one in answer.json()["choices"]] == ["bc"] * 100


@pytest.mark.parametrize(
    ("prompt", "said", "param"),
    [
        (["a", ""], "prompt 1: ", "prompt[1]"),
        ([[97], [900]], "prompt 1: ", "prompt[1]"),
        (["a"] * (MAX_PROMPTS + 1), f"{MAX_PROMPTS + 1} prompts: at most {MAX_PROMPTS}", "prompt"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_prompt_that_is_wrong_is_named(
    prompt: list[Any], said: str, param: str, stream: bool
) -> None:
    async with http() as (served, client):
        answer = await client.post("/v1/completions", json=BOTH | {"prompt": prompt, "stream": stream})
        error = answer.json()["error"]
        await nothing_lives(served)
    assert answer.status_code == 400
    assert said in error["message"]
    assert error["param"] == param


async def test_a_fault_of_the_whole_body_is_not_one_of_a_prompt() -> None:
    async with http() as (_, client):
        answer = await client.post("/v1/completions", json=BOTH | {"temperature": 99})
    assert answer.json()["error"]["param"] == "temperature"
    assert "prompt" not in answer.json()["error"]["message"]


async def test_a_client_that_leaves_frees_all_of_them() -> None:
    async with http(auto=False) as (served, client):
        call = asyncio.create_task(client.post("/v1/completions", json=BOTH))
        for _ in range(2):
            await served.hub.next(Submit)
        call.cancel()
        for _ in range(2):
            await served.hub.next(Cancel)
        await nothing_lives(served)


async def test_cancelling_one_ends_the_answer() -> None:
    async with http(auto=False) as (served, client):
        call = asyncio.create_task(client.post("/v1/completions", json=BOTH | {"request_id": "mine"}))
        await answer_with(served, "x")
        await served.hub.next(Submit)
        assert (await client.post("/v1/completions/mine-1/cancel")).status_code == 200
        assert (await call).status_code == 409
        await nothing_lives(served)
