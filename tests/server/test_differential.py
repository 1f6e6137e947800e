"""The whole vocabulary of requests through a real server, over gRPC and over HTTP, all at once, in float32:
against transformers' own generate with its own processors."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import httpx
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.models.test_generation import CountPenalties
from tests.server.test_serve import real_server
from tokenmux.client import AsyncClient, Completion, TokenLogprobs
from tokenmux.core.sampling import Sampling, choice_seed
from tokenmux.models.catalogue import tiny
from tokenmux.models.sampling.draw import draw_token

N_OUTPUT = 12
N_TOLD = 3
DEVICE = """\
device: {arena: 6MiB, host_cache: 64MiB, host_kv: 16MiB, slab: 512KiB, prefill_chunk_tokens: 16}
http: 127.0.0.1:0
"""
"""Its arena does not hold all models, and prompts are several chunks."""

EVERY_DAY = ("gemma2", "gpt2", "llama")


@dataclass(frozen=True)
class Case:
    """Options of the client, the same of a body, and what transformers is told: options of its generate, or
    frequency and presence penalties, which it does not have."""

    options: Mapping[str, Any]
    body: Mapping[str, Any] | None = None
    theirs: Mapping[str, Any] | None = None
    penalties: tuple[float, float] = (0.0, 0.0)


def same(**options: Any) -> Case:
    """A case whose options have one name everywhere."""
    return Case(options, options, options)


CASES = {
    "plain": same(),
    "repetition": same(repetition_penalty=1.3),
    "encouraged": same(repetition_penalty=0.9),
    "frequency": Case({"frequency_penalty": 0.7}, penalties=(0.7, 0.0)),
    "presence": Case({"presence_penalty": 1.5}, penalties=(0.0, 1.5)),
    "bias": Case(
        {"logit_bias": {5: 2.5, 17: -100.0, 200: 1.0}},
        {"logit_bias": {"5": 2.5, "17": -100.0, "200": 1.0}},
        {"sequence_bias": {(5,): 2.5, (17,): -100.0, (200,): 1.0}},
    ),
    "forbidden": Case(
        {"forbidden_token_ids": list(range(0, 250, 3))},
        {"logit_bias": {str(token): -100.0 for token in range(0, 250, 3)}},
        {"suppress_tokens": list(range(0, 250, 3))},
    ),
    "bad words": Case(
        {"bad_words": [*ascii_lowercase, "AB"]},
        theirs={"bad_words_ids": [*([64 + i] for i in range(26)), [32, 33], [220, 32, 33]]},
    ),
    "together": Case(
        {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.4},
        theirs={"repetition_penalty": 1.2},
        penalties=(0.3, 0.4),
    ),
}


Tokens = tuple[int, ...]
CUTS = {"temperature": 1.1, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "seed": 5}
MINIMA = (0, 9)


def prompts() -> list[Tokens]:
    generator = torch.Generator().manual_seed(11)
    return [tuple(torch.randint(0, 250, (n,), generator=generator).tolist()) for n in (1, 17, 40)]


def sampling_of(choice: int) -> Sampling:
    return Sampling(1.1, 50, 0.9, choice_seed(5, choice), 0.02)


@cache
def generated(
    model: PreTrainedModel, prompt: Tokens, name: str = "plain", end: int = -1, least: int = 0
) -> list[int]:
    """What transformers generates in a case; `end` ends it after at least `least` tokens."""
    case = CASES[name]
    config = GenerationConfig(
        **{"do_sample": False, "max_new_tokens": N_OUTPUT, "pad_token_id": 0}
        | {"eos_token_id": end, "min_new_tokens": least}
        | dict(case.options if case.theirs is None and not any(case.penalties) else case.theirs or {})
    )
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        logits_processor=LogitsProcessorList([CountPenalties(len(prompt), *case.penalties)]),
    )
    return output[0, len(prompt) :].tolist()


@cache
def log_probabilities(model: PreTrainedModel, tokens: Tokens) -> torch.Tensor:
    """Row i: what the model thinks of the token after the first i + 1."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0].double()
    return torch.log_softmax(logits, -1)


def check_told(rows: torch.Tensor, tokens: Sequence[int], told: Sequence[TokenLogprobs | None]) -> None:
    assert len(told) == len(tokens) == len(rows)
    for row, token, one in zip(rows, tokens, told, strict=True):
        assert one is not None
        assert one.logprob == pytest.approx(float(row[token]), abs=1e-4)
        values = [value for _, value in one.top]
        assert values == pytest.approx(row.topk(N_TOLD).values.tolist(), abs=1e-4)
        assert values == pytest.approx([float(row[other]) for other, _ in one.top], abs=1e-4)


@cache
def drawn(model: PreTrainedModel, prompt: Tokens, sampling: Sampling) -> list[int]:
    """What a seed draws from transformers' logits, token by token, each among those that its own warpers
    keep."""
    warpers = LogitsProcessorList(
        [
            TemperatureLogitsWarper(sampling.temperature),
            TopKLogitsWarper(sampling.top_k),
            TopPLogitsWarper(sampling.top_p),
            MinPLogitsWarper(sampling.min_p),
        ]
    )
    tokens = list(prompt)
    for _ in range(N_OUTPUT):
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[:, -1]
        token = draw_token(logits[0], sampling, len(tokens))
        assert warpers(torch.tensor([tokens]), logits.clone())[0, token] > -torch.inf
        tokens.append(token)
    return tokens[len(prompt) :]


def prepare(model: PreTrainedModel) -> None:
    """Compute all that is compared: connections must not wait for that."""
    for prompt in prompts():
        for name in CASES:
            log_probabilities(model, (*prompt, *generated(model, prompt, name)))
        for least in MINIMA:
            generated(model, prompt, end=generated(model, prompt)[5], least=least)
        for choice in range(3):
            drawn(model, prompt, sampling_of(choice))


async def compare(address: str, base_url: str, references: Mapping[str, PreTrainedModel]) -> None:
    """Ask for everything at once over both dialects, and compare each answer."""
    everything = asyncio.Semaphore(64)
    felt: set[str] = set()
    """Cases that change an output."""
    async with AsyncClient(address) as client, httpx.AsyncClient(base_url=base_url, timeout=500) as http:

        async def asked(model: str, prompt: Tokens, **options: Any) -> Completion:
            async with everything:
                return await client.generate(
                    model, prompt, **{"max_tokens": N_OUTPUT, "ignore_end_tokens": True} | options
                )

        async def posted(model: str, prompt: Tokens, body: Mapping[str, Any]) -> dict[str, Any]:
            fixed = {"model": model, "prompt": list(prompt), "max_tokens": N_OUTPUT, "temperature": 0}
            async with everything:
                answer = await http.post("/completions", json=fixed | {"ignore_eos": True} | dict(body))
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()
            return found

        async def check_case(name: str, model: str, prompt: Tokens) -> None:
            case, reference = CASES[name], references[model]
            expected = generated(reference, prompt, name)
            if expected != generated(reference, prompt):
                felt.add(name)
            told = {"logprobs": N_TOLD, "prompt_logprobs": N_TOLD}
            body = case.options if case.body is None else case.body
            ours, over_http = await asyncio.gather(
                asked(model, prompt, **case.options, **told), posted(model, prompt, {**body, **told})
            )
            assert list(ours.token_ids) == expected, (name, model, len(prompt))
            rows = log_probabilities(reference, (*prompt, *expected))
            check_told(rows[len(prompt) - 1 : -1], expected, ours.logprobs)
            assert ours.prompt_logprobs is not None
            assert ours.prompt_logprobs.token_ids == prompt
            assert ours.prompt_logprobs.logprobs[0] is None
            check_told(rows[: len(prompt) - 1], prompt[1:], ours.prompt_logprobs.logprobs[1:])

            (choice,) = over_http["choices"]
            assert choice["text"] == ours.text
            values = [float(rows[len(prompt) - 1 + i, token]) for i, token in enumerate(expected)]
            assert choice["logprobs"]["token_logprobs"] == pytest.approx(values, abs=1e-4)
            listed = choice["prompt_logprobs"]
            assert listed[0] is None
            for row, token, place in zip(rows, prompt[1:], listed[1:], strict=False):
                assert place[str(token)]["logprob"] == pytest.approx(float(row[token]), abs=1e-4)
                assert N_TOLD <= len(place) <= N_TOLD + 1

        async def check_stops(model: str, prompt: Tokens) -> None:
            """A token ends the output, but not before the minimum."""
            end = generated(references[model], prompt)[5]
            for least in MINIMA:
                expected = generated(references[model], prompt, end=end, least=least)
                ours, over_http = await asyncio.gather(
                    asked(model, prompt, stop_token_ids=[end], min_tokens=least),
                    posted(model, prompt, {"stop_token_ids": [end], "min_tokens": least}),
                )
                assert list(ours.token_ids) == expected
                assert over_http["usage"]["completion_tokens"] == len(expected)
                assert over_http["choices"][0]["text"] == ours.text

        async def check_draws(model: str, prompt: Tokens) -> None:
            """Each choice has the draws of its seed, which do not depend on the dialect."""
            ours, over_http = await asyncio.gather(
                asked(model, prompt, n=3, **CUTS), posted(model, prompt, {"n": 3, **CUTS})
            )
            for index, choice in enumerate(ours.choices):
                assert list(choice.token_ids) == drawn(references[model], prompt, sampling_of(index))
            assert [choice["text"] for choice in over_http["choices"]] == [one.text for one in ours.choices]
            assert over_http["usage"]["prompt_tokens"] == ours.usage.n_prompt_tokens == len(prompt)
            assert over_http["usage"]["completion_tokens"] == 3 * N_OUTPUT

        checks: list[Any] = [
            check_case(name, model, prompt) for model in references for prompt in prompts() for name in CASES
        ]
        for check in (check_stops, check_draws):
            checks += [check(model, prompt) for model in references for prompt in prompts()]
        await asyncio.gather(*checks)
        assert felt == set(CASES) - {"plain"}


def serve_and_compare(folder: Path, families: Sequence[str]) -> None:
    torch.set_num_threads(1)
    with real_server(folder, "", DEVICE, families, torch.float32) as (process, address):
        assert process.stdout is not None
        base_url = process.stdout.readline().split(" at ")[1].strip()
        references = {
            family: AutoModelForCausalLM.from_pretrained(
                folder / family, dtype=torch.float32, attn_implementation="eager"
            )
            for family in families
        }
        for model in references.values():
            prepare(model)
        asyncio.run(compare(address, base_url, references))


def test_both_dialects_give_what_transformers_generates(tmp_path: Path) -> None:
    serve_and_compare(tmp_path, EVERY_DAY)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_every_family_gives_what_transformers_generates(tmp_path: Path) -> None:
    serve_and_compare(tmp_path, sorted(set(tiny.FAMILIES) - set(EVERY_DAY)))
