"""Parameters of a generation, token for token against transformers' own generate with its own processors, in
float32: alone, and in random company with KV dropped and replayed, blocks moved, and bursts of steps."""

from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from tests.models.test_families import Served, load, prompts
from tokenmux.core.sampling import LogitRules, Sampling
from tokenmux.models.catalogue import tiny

N_OUTPUT = 24
GRID = 16


class CountPenalties(LogitsProcessor):
    """Frequency and presence penalties, which transformers does not have: by vLLM's definition."""

    def __init__(self, n_prompt: int, frequency: float, presence: float) -> None:
        self.n_prompt, self.frequency, self.presence = n_prompt, frequency, presence

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(input_ids[0, self.n_prompt :], minlength=scores.shape[-1])
        return scores - self.frequency * counts - self.presence * (counts > 0)


CASES: dict[str, tuple[LogitRules, dict[str, Any]]] = {
    "repetition": (LogitRules(1.3), {"repetition_penalty": 1.3}),
    "encouraged": (LogitRules(0.9), {"repetition_penalty": 0.9}),
    "frequency": (LogitRules(1.0, 0.7), {}),
    "presence": (LogitRules(1.0, 0.0, 1.5), {}),
    "bias": (
        LogitRules(bias=((5, 2.5), (17, -100.0), (200, 1.0))),
        {"sequence_bias": {(5,): 2.5, (17,): -100.0, (200,): 1.0}},
    ),
    "everything": (
        LogitRules(1.2, 0.3, 0.4, bias=((5, 1.5), (9, -2.0))),
        {"repetition_penalty": 1.2, "sequence_bias": {(5,): 1.5, (9,): -2.0}},
    ),
}


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "qwen2_moe"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tiny.create(request.param, tmp_path_factory.mktemp(request.param), dtype=torch.float32)
    return load(folder, torch.float32)


def generated(
    model: PreTrainedModel, prompt: list[int], rules: LogitRules, options: dict[str, Any]
) -> list[int]:
    """What transformers generates, greedily, with its own processors and those that it lacks."""
    config = GenerationConfig(
        do_sample=False, max_new_tokens=N_OUTPUT, eos_token_id=-1, pad_token_id=0, **options
    )
    lacking = CountPenalties(len(prompt), rules.frequency_penalty, rules.presence_penalty)
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        logits_processor=LogitsProcessorList([lacking]),
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("case", CASES)
def test_greedy_with_rules_equals_transformers(served: Served, hostile_scheduler, job, case: str) -> None:
    rules, options = CASES[case]
    expected = [generated(served.reference, prompt, rules, options) for prompt in prompts()]
    plain = [generated(served.reference, prompt, LogitRules(), {}) for prompt in prompts()]
    assert expected != plain, "the case would show nothing"
    jobs = [job(p, N_OUTPUT, Sampling(rules=rules)) for p in prompts()]
    company = [job(p, N_OUTPUT) for p in prompts()]
    for repeat in (1, 3):
        scheduler = hostile_scheduler(served.runner, served.shape, served.dtype, grid=GRID, n_blocks=400)
        got = scheduler.serve([*jobs, *company], preempt=0.1, move=0.1, repeat=repeat)
        assert got == [*expected, *plain]
        assert scheduler.n_preemptions > len(expected)


def test_log_probabilities_equal_transformers(served: Served, hostile_scheduler, job) -> None:
    """They are those of the model, whatever rules and temperature choose."""
    sampling = Sampling(1.0, seed=5, min_p=0.05, rules=LogitRules(1.3), n_likeliest=5)
    jobs = [job(p, N_OUTPUT, sampling) for p in prompts()]
    jobs[1].sampling = sampling._replace(n_likeliest=0, temperature=0.0)
    company = [job(p, N_OUTPUT) for p in prompts()]
    scheduler = hostile_scheduler(served.runner, served.shape, served.dtype, grid=GRID, n_blocks=400)
    scheduler.serve([*jobs, *company], preempt=0.1, move=0.1, repeat=3)
    for one in jobs:
        with torch.no_grad():
            logits = served.reference(torch.tensor([one.tokens])).logits[0, len(one.prompt) - 1 : -1]
        expected = torch.log_softmax(logits.double(), -1)
        assert len(one.told) == N_OUTPUT
        for row, token, told in zip(expected, one.output, one.told, strict=True):
            assert told.drawn == pytest.approx(float(row[token]), abs=1e-4)
            assert len(told.likeliest) == one.sampling.n_likeliest
            values = [value for _, value in told.likeliest]
            assert values == sorted(values, reverse=True)
            top = row.topk(one.sampling.n_likeliest).values.tolist()
            assert values == pytest.approx(top, abs=1e-4)
            assert values == pytest.approx([float(row[token]) for token, _ in told.likeliest], abs=1e-4)
    assert not any(told for one in company for told in one.told)


def test_bad_words_are_never_completed(served: Served, hostile_scheduler, job) -> None:
    """Each time the sequence that a greedy output has is forbidden, the next output avoids all so far."""
    prompt = prompts()[3]
    forbidden: list[tuple[int, ...]] = []
    for n in (1, 2, 3, 2):
        scheduler = hostile_scheduler(served.runner, served.shape, served.dtype, grid=GRID, n_blocks=100)
        sampling = Sampling(rules=LogitRules(forbidden=tuple(forbidden)))
        (output,) = scheduler.serve([job(prompt, N_OUTPUT, sampling)], preempt=0.2, repeat=2)
        assert output == bad_words_generated(served.reference, prompt, forbidden)
        forbidden.append(tuple(output[4 : 4 + n]))


def bad_words_generated(
    model: PreTrainedModel, prompt: list[int], forbidden: list[tuple[int, ...]]
) -> list[int]:
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=N_OUTPUT,
        eos_token_id=-1,
        pad_token_id=0,
        bad_words_ids=[list(words) for words in forbidden] or None,
    )
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return output[0, len(prompt) :].tolist()


def test_sampled_with_rules_is_the_same_alone_and_in_company(served: Served, hostile_scheduler, job) -> None:
    rules = LogitRules(1.2, 0.3, 0.4, bias=((5, 1.5),), forbidden=((7,), (8, 9)))
    sampling = Sampling(1.0, top_p=0.9, seed=3, min_p=0.02, rules=rules)

    def jobs() -> list[Any]:
        return [job(p, N_OUTPUT, sampling) for p in prompts()]

    def scheduler(seed: int) -> Any:
        return hostile_scheduler(
            served.runner, served.shape, served.dtype, grid=GRID, n_blocks=400, seed=seed
        )

    alone = [scheduler(0).serve([one])[0] for one in jobs()]
    for seed in range(2):
        company = [job(p, N_OUTPUT, Sampling(1.0, seed=seed)) for p in prompts()]
        got = scheduler(seed).serve([*jobs(), *company], preempt=0.1, move=0.1, repeat=1 + 2 * seed)
        assert got[: len(alone)] == alone
