"""Log-probabilities in both forms of answers, whole and streamed."""

import asyncio
import math
from typing import Any

import pytest

from tests.server.http_api.http_calls import CHAT, TEXT, events, http
from tokenmux.core.request import FinishReason
from tokenmux.core.sampling import LogProbabilities
from tokenmux.messages.commands import Submit
from tokenmux.messages.reports import Finished, Tokens

STEPS = (
    (ord("h"), LogProbabilities(-0.5, ((ord("h"), -0.5), (ord("i"), -1.5)))),
    (0xC3, LogProbabilities(-3.0, ((ord("x"), -0.25), (0xC4, -0.5)))),
    (0xA9, LogProbabilities(-math.inf, ((ord("a"), -0.125), (ord("b"), -0.25)))),
)
"""Tokens of the scripted models are bytes: these spell h, and the two halves of é."""

ONE_HALF, OTHER_HALF = "bytes:\\xc3", "bytes:\\xa9"


async def asked(path: str, body: dict[str, Any]) -> tuple[list[Any], Submit]:
    """The choices of an answer that consists of `STEPS`, and what the node was asked."""
    async with http(auto=False) as (served, client):
        answering = asyncio.create_task(client.post(path, json=body))
        submit = await served.hub.next(Submit)
        n = submit.sampling.n_likeliest
        for index, (token, told) in enumerate(STEPS):
            scores = () if n is None else (told._replace(likeliest=told.likeliest[:n]),)
            served.hub.post(Tokens(submit.request.id, index, (token,), 100.0, scores))
        served.hub.post(Finished(submit.request.id, FinishReason.LENGTH, 100.0))
        answer = await answering
        documents = events(answer.text)[0][:-1] if body.get("stream") else [answer.json()]
        return [choice for document in documents for choice in document["choices"]], submit


@pytest.mark.parametrize("stream", [True, False])
async def test_those_of_a_conversation(stream: bool) -> None:
    extra = {"logprobs": True, "top_logprobs": 2, "stream": stream}
    choices, submit = await asked("/v1/chat/completions", CHAT | extra)
    assert submit.sampling.n_likeliest == 2
    told = [choice["logprobs"] for choice in choices if choice["logprobs"] is not None]
    assert {one["refusal"] for one in told} == {None}
    first, second, third = [token for one in told for token in one["content"]]
    assert first == {
        "token": "h",
        "logprob": -0.5,
        "bytes": [104],
        "top_logprobs": [
            {"token": "h", "logprob": -0.5, "bytes": [104]},
            {"token": "i", "logprob": -1.5, "bytes": [105]},
        ],
    }
    assert (second["token"], second["bytes"], second["logprob"]) == (ONE_HALF, [0xC3], -3.0)
    assert [one["token"] for one in second["top_logprobs"]] == ["x", "bytes:\\xc4"]
    assert bytes(first["bytes"] + second["bytes"] + third["bytes"]).decode() == "hé"
    assert third["logprob"] == -9999.0


@pytest.mark.parametrize("stream", [True, False])
async def test_those_of_a_text(stream: bool) -> None:
    choices, submit = await asked("/v1/completions", TEXT | {"logprobs": 2, "stream": stream})
    assert submit.sampling.n_likeliest == 2
    told = [choice["logprobs"] for choice in choices if choice["logprobs"] is not None]
    whole = {name: [item for one in told for item in one[name]] for name in told[0]}
    assert whole == {
        "tokens": ["h", ONE_HALF, OTHER_HALF],
        "token_logprobs": [-0.5, -3.0, -9999.0],
        "text_offset": [0, 1, 1],
        "top_logprobs": [
            {"h": -0.5, "i": -1.5},
            {"x": -0.25, "bytes:\\xc4": -0.5, ONE_HALF: -3.0},
            {"a": -0.125, "b": -0.25, OTHER_HALF: -9999.0},
        ],
    }


async def test_offsets_count_what_is_repeated_of_the_prompt() -> None:
    extra = {"logprobs": 0, "echo": True, "prompt": "ab"}
    (choice,), submit = await asked("/v1/completions", TEXT | extra)
    assert submit.sampling.n_likeliest == 0
    assert choice["text"].startswith("ab")
    assert choice["logprobs"]["text_offset"][-3:] == [2, 3, 3]


@pytest.mark.parametrize(
    ("path", "body", "n_likeliest"),
    [
        ("/v1/chat/completions", CHAT, None),
        ("/v1/chat/completions", CHAT | {"logprobs": False, "top_logprobs": 0}, None),
        ("/v1/chat/completions", CHAT | {"logprobs": True}, 0),
        ("/v1/completions", TEXT, None),
    ],
)
async def test_what_is_not_asked_for_is_not_told(path: str, body: Any, n_likeliest: int | None) -> None:
    choices, submit = await asked(path, body)
    assert submit.sampling.n_likeliest == n_likeliest
    (told,) = [choice["logprobs"] for choice in choices]
    if n_likeliest is None:
        assert told is None
    else:
        assert told["content"][0]["top_logprobs"] == []


@pytest.mark.parametrize(
    ("path", "body", "param", "remedy"),
    [
        ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "to 20"),
        ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": -1}, "top_logprobs", "0 "),
        ("/v1/chat/completions", CHAT | {"top_logprobs": 1}, "top_logprobs", "set logprobs"),
        ("/v1/chat/completions", CHAT | {"logprobs": 3}, "logprobs", "boolean"),
        ("/v1/completions", TEXT | {"logprobs": 21}, "logprobs", "to 20"),
        ("/v1/completions", TEXT | {"logprobs": True}, "logprobs", "integer"),
        ("/v1/completions", TEXT | {"top_logprobs": 2}, "top_logprobs", "leave it out"),
    ],
)
async def test_what_is_wrong_is_named(path: str, body: Any, param: str, remedy: str) -> None:
    async with http() as (_, client):
        answer = await client.post(path, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        assert remedy in answer.json()["error"]["message"]
