"""Requests that draw nothing, on real (small) models: each ends with its prompt, and is told of it what a
request is told that goes on to draw, in company, while KV is paged, shared and lost."""

from pathlib import Path

import pytest
import torch

from tests.node.served_node import device, served, tiny_entries
from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.core.sampling import LogProbabilities, Sampling
from tokenmux.messages.commands import Submit
from tokenmux.messages.reports import Tokens
from tokenmux.models.catalogue.entry import Entry

FAMILIES = {"llama": torch.bfloat16, "qwen3": torch.float32}
CELL = 16
N = 30


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    return tiny_entries(tmp_path_factory.mktemp("catalogue"), FAMILIES)


def submit(entries: list[Entry], number: int, *, draws: bool) -> Submit:
    """One of `N` requests, which ask in turn for log-probabilities of their prompts, or for nothing of them.
    All prompts begin alike."""
    prompt = (*(i % 250 for i in range(1 + number * 37 % 160)), number)
    model = ModelId(entries[number % len(entries)].name)
    request = Request(RequestId(f"r{number}"), model, len(prompt), 20 if draws else 1, arrival_s=0.0)
    asked = 2 if number % 3 else None
    return Submit(request, prompt, Sampling(), n_prompt_likeliest=asked, draws=draws)


@pytest.fixture(scope="module")
def alone(entries: list[Entry]) -> dict[RequestId, list[LogProbabilities]]:
    """What requests that go on to draw are told of their prompts, each with the device to itself."""
    with served(entries, device(entries, n_slabs=200, cell_tokens=CELL)) as body:
        for number in range(N):
            body.send(submit(entries, number, draws=True))
            body.until_ended(number + 1)
        return body.told


def test_prompts_are_scored_as_if_tokens_followed(
    entries: list[Entry], alone: dict[RequestId, list[LogProbabilities]]
) -> None:
    small = device(entries, n_slabs=12, cell_tokens=CELL)
    scored = {RequestId(f"r{number}") for number in range(N) if number % 4}
    with served(entries, small, small, prefix_cache=True) as body:
        for number in range(N):
            body.send(submit(entries, number, draws=not number % 4))
        for index in range(2):
            body.until(lambda message: isinstance(message, Tokens))
            body.driven.kill(InstanceId(index))
        body.until_ended(N)
        body.check_books()
    assert body.told == alone
    assert not body.tokens.keys() & scored
    assert all(end.reason is FinishReason.LENGTH for end in body.ends.values())
    assert any(body.ends[request].n_cached for request in scored)
    assert not any(end.n_cached for request, end in body.ends.items() if request not in scored)


def test_a_request_that_draws_nothing_tells_what_it_was_given(entries: list[Entry]) -> None:
    prompt = tuple(range(100))
    given = []
    with served(entries[:1], device(entries, 200, cell_tokens=CELL), prefix_cache=True) as body:
        for number, asked in enumerate((None, None, 0)):
            request = Request(RequestId(f"r{number}"), ModelId(entries[0].name), 100, 1, arrival_s=0.0)
            body.send(Submit(request, prompt, Sampling(), n_prompt_likeliest=asked, draws=False))
            body.until_ended(number + 1)
            given.append(body.ends[request.id].n_cached)
    assert given == [0, 96, 0]


def test_a_prompt_that_takes_the_whole_context_is_scored(tmp_path: Path) -> None:
    """With learned positions, of which there is none beyond the context."""
    (entry,) = tiny_entries(tmp_path, {"gpt2": torch.float32})
    whole = tuple(i * 7 % 250 for i in range(entry.facts.max_context))
    with served([entry], device([entry], 200, cell_tokens=CELL)) as body:
        for name, prompt in (("whole", whole), ("shorter", whole[:-1])):
            request = Request(RequestId(name), entry.facts.id, len(prompt), 1, arrival_s=0.0)
            body.send(Submit(request, prompt, Sampling(), n_prompt_likeliest=1, draws=False))
        body.until_ended(2)
    told, shorter = (body.told[RequestId(name)] for name in ("whole", "shorter"))
    assert len(told) == entry.facts.max_context - 1
    assert [one.drawn for one in told[:-1]] == pytest.approx([one.drawn for one in shorter], abs=1e-5)
