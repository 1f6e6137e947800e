"""Log-probabilities of a prompt in both forms of answers: vLLM's field, and OpenAI's echo with logprobs.

A scripted node gives each token minus its id, and names it as the only likely one.
"""

from typing import Any

import pytest

from tests.server.http_api.http_calls import CHAT, TEXT, events, http, usage_of
from tests.server.scripted_models import FakeEntry, facts

ABC = TEXT | {"prompt": "abc", "max_tokens": 1}


def scored(letter: str) -> dict[str, Any]:
    return {
        str(ord(letter)): {"logprob": -float(ord(letter)), "rank": 1, "decoded_token": letter},
    }


async def test_every_choice_of_a_text_has_the_field_of_vllm() -> None:
    async with http() as (_, client):
        answer = (await client.post("/v1/completions", json=ABC | {"prompt_logprobs": 1, "n": 2})).json()
        plain = (await client.post("/v1/completions", json=ABC)).json()
    told = [choice["prompt_logprobs"] for choice in answer["choices"]]
    assert told == [[None, scored("b"), scored("c")]] * 2
    assert answer["usage"] == usage_of(3, 2)
    assert all("prompt_logprobs" not in choice for choice in plain["choices"])


async def test_a_token_that_is_not_among_the_likeliest_has_no_rank() -> None:
    async with http() as (_, client):
        answer = (await client.post("/v1/completions", json=ABC | {"prompt_logprobs": 0})).json()
    listed = answer["choices"][0]["prompt_logprobs"]
    assert listed == [
        None,
        {"98": scored("b")["98"] | {"rank": None}},
        {"99": scored("c")["99"] | {"rank": None}},
    ]


async def test_a_conversation_has_it_beside_its_choices() -> None:
    async with http() as (_, client):
        answer = (await client.post("/v1/chat/completions", json=CHAT | {"prompt_logprobs": 0})).json()
    assert answer["prompt_logprobs"][0] is None
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert "prompt_logprobs" not in answer["choices"][0]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_echoed_prompt_has_log_probabilities_if_the_output_has(stream: bool) -> None:
    asked = ABC | {"echo": True, "logprobs": 1, "n": 2, "stream": stream}
    async with http() as (_, client):
        answer = await client.post("/v1/completions", json=asked)
    documents = events(answer.text)[0][:-1] if stream else [answer.json()]
    for index in range(2):
        choices = [one for document in documents for one in document["choices"] if one["index"] == index]
        assert "".join(choice["text"] for choice in choices) == "abcd"
        told = [choice["logprobs"] for choice in choices if choice["logprobs"] is not None]
        whole = {name: [item for one in told for item in one[name]] for name in told[0]}
        assert whole["tokens"] == ["a", "b", "c"]
        assert whole["token_logprobs"] == [None, -98.0, -99.0]
        assert whole["top_logprobs"] == [None, {"b": -98.0}, {"c": -99.0}]
        assert whole["text_offset"] == [0, 1, 2]
        assert all("prompt_logprobs" not in choice for choice in choices)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_prompt_is_scored_without_output(stream: bool) -> None:
    """As lm-evaluation-harness asks."""
    asked = ABC | {"max_tokens": 0, "echo": True, "logprobs": 1, "stream": stream}
    options = {"stream_options": {"include_usage": True}} if stream else {}
    async with http() as (_, client):
        answer = await client.post("/v1/completions", json=asked | options)
    documents = events(answer.text)[0][:-1] if stream else [answer.json()]
    choices = [choice for document in documents for choice in document["choices"]]
    assert "".join(choice["text"] for choice in choices) == "abc"
    told = [choice["logprobs"] for choice in choices if choice["logprobs"] is not None]
    assert [value for one in told for value in one["token_logprobs"]] == [None, -98.0, -99.0]
    assert [one["finish_reason"] for one in choices if one["finish_reason"]] == ["length"]
    assert documents[-1]["usage"] == usage_of(3, 0)


@pytest.mark.parametrize("prompt", ["b" * 32, [98] * 32], ids=["text", "token ids"])
async def test_a_prompt_that_is_scored_may_take_the_whole_context(prompt: str | list[int]) -> None:
    asked = TEXT | {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 0}
    async with http(FakeEntry(facts("letters", max_context=32))) as (_, client):
        answer = await client.post("/v1/completions", json=asked)
        drawing = await client.post("/v1/completions", json=asked | {"max_tokens": 1})
        longer = await client.post("/v1/completions", json=asked | {"prompt": prompt + prompt[:1]})
    assert answer.json()["choices"][0]["logprobs"]["token_logprobs"] == [None, *[-98.0] * 31]
    assert drawing.status_code == longer.status_code == 400
    assert "output included: shorten the prompt to at most 31 tokens" in drawing.text
    assert "a context of 32: shorten the prompt to at most 32 tokens" in longer.text


async def test_a_conversation_is_scored_without_output() -> None:
    asked = CHAT | {"max_tokens": 0, "prompt_logprobs": 0}
    async with http() as (_, client):
        answer = (await client.post("/v1/chat/completions", json=asked)).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": ""}
    assert len(answer["prompt_logprobs"]) == answer["usage"]["total_tokens"]


async def test_a_plain_echo_computes_no_log_probabilities() -> None:
    async with http() as (served, client):
        answer = await client.post("/v1/completions", json=ABC | {"echo": True})
        submit = served.hub.unread()[-1]
    assert answer.json()["choices"][0]["logprobs"] is None
    assert submit.n_prompt_likeliest is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"prompt_logprobs": 21}, "prompt_logprobs 21 is out of range"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs are for answers in one piece"),
        ({"prompt_logprobs": True}, "prompt_logprobs: should be a valid integer"),
        ({"max_tokens": 0}, "max_tokens 0 draws nothing, and nothing of the prompt is asked for: set echo"),
        ({"n": 17}, "n 17 is out of range: use 1 to 16 choices"),
        ({"n": 2, "best_of": 4}, "best_of is not served here: use 1 or leave it out"),
    ],
)
async def test_what_cannot_be_told_names_its_field(extra: dict[str, Any], said: str) -> None:
    async with http() as (_, client):
        answer = await client.post("/v1/completions", json=ABC | extra)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"].startswith(said)
    assert error["param"] == [*extra][-1 if "best_of" in extra else 0]
