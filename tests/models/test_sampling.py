"""Drawing: a pure function of logits, sampling and position, with the distribution that was asked for."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.engine.core.message import Sampling
from tokenmux.engine.models.sampling import draw, likeliest, uniform

N_WORDS = 3000
LOGITS = torch.randn(N_WORDS, generator=torch.Generator().manual_seed(0)).bfloat16()


def test_greedy_takes_the_likeliest_that_is_allowed() -> None:
    first, second = LOGITS.float().topk(2).indices.tolist()
    assert draw(LOGITS, Sampling(), 7) == first == int(likeliest(LOGITS))
    assert draw(LOGITS, Sampling(), 7, {first}) == second
    assert LOGITS[first] > LOGITS[second]


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_a_draw_is_a_function_of_seed_and_position(seed: int, position: int) -> None:
    sampling = Sampling(temperature=1.0, seed=seed)
    assert draw(LOGITS, sampling, position) == draw(LOGITS.clone(), sampling, position)
    assert 0.0 <= uniform(seed, position) < 1.0


def test_positions_and_seeds_give_other_numbers() -> None:
    numbers = {uniform(seed, position) for seed in range(50) for position in range(50)}
    assert len(numbers) == 2500
    assert abs(sum(numbers) / 2500 - 0.5) < 0.02


def test_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    n = 4000
    for temperature in (0.5, 1.0, 2.0):
        expected = torch.softmax(logits / temperature, -1)
        counts = Counter(draw(logits, Sampling(temperature, seed=1), position) for position in range(n))
        assert counts[3] == 0
        for token in range(3):
            assert counts[token] / n == pytest.approx(float(expected[token]), abs=0.03)


def test_top_k_keeps_k_and_the_ties_of_the_last() -> None:
    logits = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0])
    for k, kept in ((1, {0}), (2, {0, 2, 3}), (3, {0, 2, 3}), (4, {0, 1, 2, 3}), (0, {0, 1, 2, 3, 4})):
        drawn = {draw(logits, Sampling(2.0, top_k=k, seed=3), position) for position in range(400)}
        assert drawn == kept


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for p, kept in ((0.4, {0}), (0.6, {0, 1}), (0.81, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        drawn = {draw(logits, Sampling(1.0, top_p=p, seed=5), position) for position in range(400)}
        assert drawn == kept


def test_a_flat_nucleus_wider_than_the_first_look_is_found() -> None:
    logits = torch.arange(N_WORDS) * -1e-4
    drawn = {draw(logits, Sampling(1.0, top_p=0.9, seed=1), position) for position in range(3000)}
    weights = torch.softmax(logits.double(), -1)
    edge = int((weights.cumsum(-1) < 0.9).sum())
    assert 1024 < max(drawn) <= edge


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.tensor([9.0, 0.0, 0.0])
    drawn = {draw(logits, Sampling(1.0, seed=2), position, {0}) for position in range(100)}
    assert drawn == {1, 2}
    assert logits[0] == 9.0
