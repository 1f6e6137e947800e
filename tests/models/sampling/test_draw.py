"""Drawing: a pure function of logits, sampling and position, with the distribution that was asked for."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tokenmux.core.sampling import GREEDY_BELOW, Sampling
from tokenmux.kernels.sample import noise, parameters, reference
from tokenmux.models.sampling.draw import Draw, draw_rows, draw_token, likeliest

N_WORDS = 3000
LOGITS = torch.randn(N_WORDS, generator=torch.Generator().manual_seed(0)).bfloat16()


def test_greedy_takes_the_likeliest_that_is_allowed() -> None:
    first, second = LOGITS.float().topk(2).indices.tolist()
    assert draw_token(LOGITS, Sampling(), 7) == first == int(likeliest(LOGITS))
    assert draw_token(LOGITS, Sampling(), 7, {first}) == second
    assert LOGITS[first] > LOGITS[second]


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_a_draw_is_a_function_of_seed_and_position(seed: int, position: int) -> None:
    sampling = Sampling(temperature=1.0, seed=seed)
    assert draw_token(LOGITS, sampling, position) == draw_token(LOGITS.clone(), sampling, position)


def test_positions_and_seeds_give_other_numbers() -> None:
    numbers = {int(noise.bits(seed, position, 1)[0]) for seed in range(50) for position in range(50)}
    assert len(numbers) == 2500
    assert abs(sum(numbers) / 2500 / 2**32 - 0.5) < 0.02


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.7, top_k=30),
        Sampling(1.3, top_p=0.9),
        Sampling(0.9, top_k=50, top_p=0.7),
        Sampling(1e-4),
        Sampling(0.0),
    ],
    ids=str,
)
def test_a_seed_draws_the_tokens_that_the_kernels_draw(sampling: Sampling) -> None:
    """Against the reference that the kernels are held to: the same token for equal logits, seed and
    position."""
    n = 200
    logits = torch.randn(n, 2000, generator=torch.Generator().manual_seed(1)).bfloat16() * 3
    seeds = [2**64 - 1 - index if index % 2 else index for index in range(n)]
    here = [draw_token(logits[i], sampling._replace(seed=seeds[i]), 1000 * i) for i in range(n)]
    rows = parameters.SamplingRows(
        temperature=torch.full((n,), sampling.temperature),
        top_k=torch.full((n,), sampling.top_k or 2000, dtype=torch.int32),
        top_p=torch.full((n,), sampling.top_p),
        min_p=torch.zeros(n),
        seed=torch.tensor(np.array(seeds, np.uint64).view(np.int64)),
        position=1000 * torch.arange(n),
    )
    assert here == reference.sample(logits, rows).tokens.tolist()


def test_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    n = 4000
    for temperature in (0.5, 1.0, 2.0):
        expected = torch.softmax(logits / temperature, -1)
        counts = Counter(draw_token(logits, Sampling(temperature, seed=1), position) for position in range(n))
        assert counts[3] == 0
        for token in range(3):
            assert counts[token] / n == pytest.approx(float(expected[token]), abs=0.03)


def test_top_k_keeps_k_and_the_ties_of_the_last() -> None:
    logits = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0])
    for k, kept in ((1, {0}), (2, {0, 2, 3}), (3, {0, 2, 3}), (4, {0, 1, 2, 3}), (0, {0, 1, 2, 3, 4})):
        drawn = {draw_token(logits, Sampling(2.0, top_k=k, seed=3), position) for position in range(400)}
        assert drawn == kept


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for p, kept in ((0.4, {0}), (0.6, {0, 1}), (0.81, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        drawn = {draw_token(logits, Sampling(1.0, top_p=p, seed=5), position) for position in range(400)}
        assert drawn == kept


def test_a_flat_nucleus_wider_than_the_first_look_is_found() -> None:
    logits = torch.arange(N_WORDS) * -1e-4
    drawn = {draw_token(logits, Sampling(1.0, top_p=0.9, seed=1), position) for position in range(3000)}
    weights = torch.softmax(logits.double(), -1)
    edge = int((weights.cumsum(-1) < 0.9).sum())
    assert 1024 < max(drawn) <= edge


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.tensor([9.0, 0.0, 0.0])
    drawn = {draw_token(logits, Sampling(1.0, seed=2), position, {0}) for position in range(100)}
    assert drawn == {1, 2}
    assert logits[0] == 9.0


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-38, 3e-37, 1e-6, 9.9e-6])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    """Logits divided by 1e-38 overflowed, and the last token of the vocabulary was drawn for ever."""
    sampling = Sampling(temperature, seed=1)
    assert {draw_token(LOGITS, sampling, position) for position in range(5)} == {int(likeliest(LOGITS))}
    assert draw_rows(LOGITS[None], [Draw(sampling, 0)]) == [int(likeliest(LOGITS))]
    assert draw_rows(LOGITS[None], [Draw(sampling, 0, {int(likeliest(LOGITS))})]) != [int(likeliest(LOGITS))]


FLOAT32 = st.floats(width=32, allow_nan=False)


@given(
    st.lists(FLOAT32, min_size=1, max_size=40),
    st.floats(0, 10) | st.sampled_from([5e-324, 1e-38, 1e-5, 1.0001e-5, 1e-4, 10.0]),
    st.integers(0, 2**31 - 1),
    st.floats(0, 1, exclude_min=True) | st.sampled_from([5e-324, 1e-45, 1e-7, 1 - 1e-9]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**40),
    st.sets(st.integers(0, 39)),
)
@example([3.4e38, -3.4e38, 3.4e38], 1e-5, 0, 1.0, 0, 0, set())
@example([float("inf"), 1.0], 1.0, 0, 0.5, 0, 0, set())
@example([float("-inf"), float("-inf")], 1.0, 1, 0.5, 0, 0, set())
def test_whatever_is_asked_a_token_is_drawn_that_may_be_drawn(
    values: list[float],
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    position: int,
    forbidden: set[int],
) -> None:
    logits = torch.tensor(values)
    banned = {token for token in forbidden if token < len(values)}
    open_to_all = [value for token, value in enumerate(values) if token not in banned]
    token = draw_token(logits, Sampling(temperature, top_k, top_p, seed), position, banned)
    assert 0 <= token < len(values)
    if open_to_all and max(open_to_all) > float("-inf"):
        assert token not in banned
        assert values[token] > float("-inf")
        if temperature < GREEDY_BELOW:
            assert values[token] == max(open_to_all)
        if 0 < top_k:
            assert sum(value > values[token] for value in open_to_all) < top_k


def test_the_kernels_have_the_same_bound() -> None:
    assert parameters.GREEDY_BELOW == GREEDY_BELOW


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_the_vocabulary_does_not_have_is_nothing_to_forbid(temperature: float) -> None:
    sampling = Sampling(temperature, seed=1)
    likeliest_id = int(likeliest(LOGITS))
    for forbidden in ({N_WORDS}, {-1}, {9999, -9999}, {10**30}):
        assert draw_token(LOGITS, sampling, 3, forbidden) == draw_token(LOGITS, sampling, 3)
        assert draw_token(LOGITS, sampling, 3, {likeliest_id, *forbidden}) == draw_token(
            LOGITS, sampling, 3, {likeliest_id}
        )
