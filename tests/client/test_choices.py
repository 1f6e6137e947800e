"""Several choices, and log-probabilities of prompts, through both clients, a server and scripted nodes."""

from typing import Any

import pytest

from tests.client.test_client import blocking
from tests.server.harness import PATIENCE_S
from tokenmux.client import (
    AsyncClient,
    CallFailed,
    Completion,
    Delta,
    Finish,
    PromptInfo,
    PromptLogprobs,
    State,
    TokenLogprobs,
)
from tokenmux.core.sampling import choice_seed

OPTIONS: dict[str, Any] = {"max_tokens": 3, "n": 3, "prompt_logprobs": 1, "seed": 7, "timeout_s": PATIENCE_S}
TOLD = PromptLogprobs(
    0,
    tuple(b"abc"),
    (
        None,
        TokenLogprobs(-98.0, ((98, -98.0),), b"b", (b"b",)),
        TokenLogprobs(-99.0, ((99, -99.0),), b"c", (b"c",)),
    ),
    b"a",
)


def check(answer: Completion) -> None:
    assert [(choice.text, bytes(choice.token_ids)) for choice in answer.choices] == [("def", b"def")] * 3
    assert [choice.finish.choice for choice in answer.choices] == [0, 1, 2]
    assert [choice.finish.seed for choice in answer.choices] == [choice_seed(7, i) for i in range(3)]
    assert (answer.text, answer.finish) == ("def", answer.choices[0].finish)
    assert (answer.usage.n_prompt_tokens, answer.usage.n_completion_tokens) == (3, 9)
    assert answer.usage.n_tokens_on_time == 9
    assert answer.prompt_logprobs == TOLD


def test_a_whole_answer_has_all_choices_and_counts_the_prompt_once() -> None:
    with blocking() as (_, client):
        check(client.generate("letters", "abc", **OPTIONS))
        plain = client.generate("letters", "abc", max_tokens=3)
        assert plain.usage.n_cached_prompt_tokens == plain.finish.n_cached_prompt_tokens == 0
    assert (plain.prompt_logprobs, len(plain.choices), plain.usage.n_completion_tokens) == (None, 1, 3)


def test_a_stream_names_the_choice_of_every_event() -> None:
    with blocking() as (_, client):
        events = list(client.stream("letters", "abc", **OPTIONS))
    assert sum(isinstance(event, PromptInfo) for event in events) == 1
    assert [event for event in events if isinstance(event, PromptLogprobs)] == [TOLD]
    texts = ["", "", ""]
    for event in events:
        if isinstance(event, Delta):
            texts[event.choice] += event.text
    assert texts == ["def"] * 3
    assert sorted(event.choice for event in events if isinstance(event, Finish)) == [0, 1, 2]
    kinds = [type(event) for event in events if not isinstance(event, State)]
    assert kinds[:2] == [PromptInfo, PromptLogprobs]
    assert kinds[-1] is Finish


async def test_the_async_client_has_the_same() -> None:
    with blocking() as (server, _):
        async with AsyncClient(server.served.target) as client:
            check(await client.generate("letters", "abc", **OPTIONS))


def test_too_many_are_refused_with_the_limit() -> None:
    with blocking() as (_, client):
        with pytest.raises(CallFailed, match="n 17 is out of range: use 1 to 16 choices"):
            client.generate("letters", "abc", n=17)
        with pytest.raises(CallFailed, match="prompt_logprobs 21 is out of range"):
            client.generate("letters", "abc", prompt_logprobs=21)
