"""Rules change logits as vLLM defines them, and as transformers' processors do where both have one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from tokenmux.core.sampling import LogitRules, Sampling
from tokenmux.kernels.sample import parameters, reference
from tokenmux.models.sampling.draw import Draw, draw_rows, draw_token
from tokenmux.models.sampling.logit_changes import changed_row, changes_of
from tokenmux.models.sampling.past_tokens import PastTokens

N_WORDS = 40
TOKENS = st.integers(0, N_WORDS - 1)
PENALTIES = st.floats(-2, 2, width=32)


def changed(logits: torch.Tensor, rules: LogitRules, prompt: list[int], output: list[int]) -> torch.Tensor:
    return changed_row(logits, changes_of(rules, PastTokens(prompt, output), (), len(logits)))


def logits_of(seed: int) -> torch.Tensor:
    return torch.randn(N_WORDS, generator=torch.Generator().manual_seed(seed)) * 4


@given(
    st.integers(0, 1000),
    st.lists(TOKENS, min_size=1, max_size=20),
    st.lists(TOKENS, max_size=20),
    st.floats(0.125, 3, width=32),
    st.dictionaries(TOKENS, st.floats(-100, 100, width=32), max_size=5),
    st.lists(st.lists(TOKENS, min_size=1, max_size=3).map(tuple), max_size=4, unique=True),
)
def test_rules_are_the_processors_of_transformers(
    seed: int,
    prompt: list[int],
    output: list[int],
    penalty: float,
    bias: dict[int, float],
    forbidden: list[tuple[int, ...]],
) -> None:
    logits = logits_of(seed)
    ids = torch.tensor([[*prompt, *output]])
    processors = LogitsProcessorList()
    if bias:
        processors.append(SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()}))
    processors.append(RepetitionPenaltyLogitsProcessor(penalty))
    expected = processors(ids, logits[None].clone())[0]
    if forbidden:
        # Ours looks at the output alone, as vLLM does.
        banned = NoBadWordsLogitsProcessor([list(words) for words in forbidden], eos_token_id=None)
        past = torch.tensor([output], dtype=torch.long).reshape(1, -1)
        expected = banned(past, expected[None])[0]
    rules = LogitRules(penalty, bias=tuple(bias.items()), forbidden=tuple(forbidden))
    got = changed(logits, rules, prompt, output)
    assert torch.allclose(got, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(logits, logits_of(seed)), "the model's logits stay as they are"


@given(
    st.integers(0, 1000), st.lists(TOKENS, max_size=20), st.lists(TOKENS, max_size=30), PENALTIES, PENALTIES
)
def test_presence_and_frequency_count_the_output_alone(
    seed: int, prompt: list[int], output: list[int], frequency: float, presence: float
) -> None:
    logits = logits_of(seed)
    counts = torch.bincount(torch.tensor(output, dtype=torch.long), minlength=N_WORDS)
    expected = logits - frequency * counts - presence * (counts > 0)
    got = changed(logits, LogitRules(1.0, frequency, presence), prompt, output)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_the_repetition_penalty_comes_after_the_bias_and_before_the_others() -> None:
    logits = torch.tensor([1.0, -1.0, 1.0, -1.0])
    rules = LogitRules(2.0, 0.5, 0.25, bias=((0, -3.0), (1, 2.0)))
    got = changed(logits, rules, [0], [1, 1])
    assert got.tolist() == [-4.0, 0.5 - 1.0 - 0.25, 1.0, -1.0]


@given(st.lists(TOKENS, max_size=10), st.lists(TOKENS, max_size=10), st.lists(TOKENS, max_size=10))
def test_tokens_added_one_by_one_are_the_same_past(
    prompt: list[int], before: list[int], later: list[int]
) -> None:
    """What a burst of steps adds equals what the node would have sent."""
    rules = LogitRules(1.3, 0.2, 0.1, forbidden=((1, 2), (3,), (4, 5, 6)))
    step_by_step = PastTokens(prompt, before)
    for token in later:
        step_by_step.append(token)
    logits = logits_of(3)
    at_once = changes_of(rules, PastTokens(prompt, [*before, *later]), (), N_WORDS)
    grown = changes_of(rules, step_by_step, (), N_WORDS)
    assert torch.equal(changed_row(logits, grown), changed_row(logits, at_once))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, top_k=20, top_p=0.9, seed=5, min_p=0.02)])
def test_a_rule_is_felt_by_its_own_row_alone(dtype: torch.dtype, sampling: Sampling) -> None:
    logits = torch.stack([logits_of(seed) for seed in range(4)]).to(dtype)
    plain = [Draw(sampling, 9) for _ in range(4)]
    alone = draw_rows(logits, plain)
    ruled = sampling._replace(rules=LogitRules(bias=((7, 100.0),)))
    mixed = [Draw(ruled, 9) if row == 2 else draw for row, draw in enumerate(plain)]
    assert draw_rows(logits, mixed) == [*alone[:2], 7, alone[3]]


def test_forbidden_tokens_and_stop_tokens_below_the_minimum_are_left_out_together() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    sampling = Sampling(rules=LogitRules(forbidden=((0,), (3, 2), (99,))))
    assert draw_rows(logits, [Draw(sampling, 0, {1})]) == [2]
    assert draw_rows(logits, [Draw(sampling, 0, {1}, PastTokens((), [3]))]) == [3]


@given(st.integers(0, 1000), st.floats(0.0078125, 1, width=32), st.sampled_from([0.5, 1.0, 2.0]))
def test_min_p_is_that_of_transformers(seed: int, min_p: float, temperature: float) -> None:
    logits = logits_of(seed)
    kept = MinPLogitsWarper(min_p)(torch.zeros(1, 1), logits[None] / temperature)[0] > -torch.inf
    drawn = {
        draw_token(logits, Sampling(temperature, seed=3, min_p=min_p), position) for position in range(100)
    }
    assert drawn <= set(kept.nonzero()[:, 0].tolist())


def test_a_seed_draws_with_min_p_what_the_kernels_draw() -> None:
    n = 200
    logits = torch.randn(n, 2000, generator=torch.Generator().manual_seed(1)).bfloat16() * 3
    sampling = Sampling(1.2, top_k=500, top_p=0.95, seed=9, min_p=0.03)
    here = [draw_token(logits[i], sampling, 10 * i) for i in range(n)]
    rows = parameters.SamplingRows(
        temperature=torch.full((n,), sampling.temperature),
        top_k=torch.full((n,), sampling.top_k, dtype=torch.int32),
        top_p=torch.full((n,), sampling.top_p),
        min_p=torch.full((n,), sampling.min_p),
        seed=torch.full((n,), sampling.seed),
        position=10 * torch.arange(n),
    )
    assert here == reference.sample(logits, rows).tokens.tolist()
    assert here != [draw_token(logits[i], sampling._replace(min_p=0.0), 10 * i) for i in range(n)]
