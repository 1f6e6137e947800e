"""`sample` against its reference, and the reference against what is known of its parts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenmux.kernels.sample import noise, reference
from tokenmux.kernels.sample.parameters import Sampled, SamplingRows

LAUNCH = "tokenmux.kernels.sample.launch:sample"


def run(place, logits, sampling, *, top_n=0):
    """Runs the kernels with poison in every output and workspace; returns the draw."""
    from tokenmux.kernels.sample.launch import SampleWorkspace

    rows, vocabulary = logits.shape
    workspace = SampleWorkspace.allocate(rows, vocabulary, top_n, place.sample_tile, "cpu")
    out = Sampled(
        tokens=torch.empty(rows, dtype=torch.int64),
        log_probabilities=torch.empty(rows),
        top_tokens=torch.empty(rows, top_n, dtype=torch.int64),
        top_log_probabilities=torch.empty(rows, top_n),
    )
    for value in (workspace, out):
        for field in dataclasses.fields(value):
            tensor = getattr(value, field.name)
            tensor.fill_(float("nan") if tensor.is_floating_point() else -(2**31) + 1)
    returned = place.run(
        LAUNCH,
        logits=logits,
        sampling=sampling,
        out=out,
        workspace=workspace,
        tile=place.sample_tile,
    )
    assert torch.equal(returned["logits"], logits) or logits.isnan().any()
    return returned["out"]


def rows_of(*rows):
    """A `SamplingRows` from (temperature, top_k, top_p, min_p, seed, position) of each row."""
    kinds = (torch.float32, torch.int32, torch.float32, torch.float32, torch.int64, torch.int64)
    return SamplingRows(
        *(
            torch.tensor(column, dtype=kind)
            for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)
        )
    )


parameters = st.tuples(
    st.sampled_from([0.0, 1e-38, 9e-6, 0.3, 1.0, 2.5]),
    st.sampled_from([1, 2, 7, 40, 100_000]),
    st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.01, 0.4]),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**40),
)


@settings(max_examples=12)
@given(
    rows=st.lists(parameters, min_size=1, max_size=3),
    vocabulary=st.sampled_from([65, 200, 256]),
    top_n=st.integers(0, 5),
    masked=st.booleans(),
    single=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example([(1.0, 100_000, 1.0, 0.0, 1, 1)], 1, 1, False, True, 0)
@example([(1.0, 3, 1.0, 0.0, 1, 1)], 3, 3, False, True, 0)
@example([(1.0, 40, 0.5, 0.01, -1, 2**40)] * 3, 256, 5, True, False, 1)
def test_equals_its_reference(place, rows, vocabulary, top_n, masked, single, seed):
    generator = torch.Generator().manual_seed(seed)
    dtype = place.dtypes[0 if single else 1]
    count = len(rows)
    padding = torch.full((count, 48), float("nan"))
    logits = torch.randn(count, vocabulary, generator=generator) * 3
    if masked:  # as a grammar does, and a whole tile of it
        logits[:, 20 : 20 + vocabulary // 2] = float("-inf")
        logits[:, 3] = float("nan")
    logits = torch.cat([logits, padding], dim=1).to(dtype)[:, :vocabulary]
    sampling = rows_of(*rows)

    drawn = run(place, logits, sampling, top_n=top_n)
    expected = reference.sample(logits, sampling, top_n=top_n)
    assert torch.equal(drawn.tokens, expected.tokens)
    torch.testing.assert_close(drawn.log_probabilities, expected.log_probabilities, atol=1e-4, rtol=1e-4)
    finite = expected.top_log_probabilities.isfinite()
    assert torch.equal(drawn.top_tokens[finite], expected.top_tokens[finite])
    torch.testing.assert_close(
        drawn.top_log_probabilities, expected.top_log_probabilities, atol=1e-4, rtol=1e-4
    )


@settings(max_examples=6)
@given(ties=st.integers(1, 5), top_k=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_ties_stay_together(place, ties, top_k, seed):
    """Equal logits are kept or dropped together, whatever their tokens, so that the order of tokens is no
    input."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 100, generator=generator).clamp(max=1.5)
    places = torch.randperm(100, generator=generator)[:ties]
    logits[0, places] = 2.0
    rows = [(1.0, top_k, 1.0, 0.0, seed, position) for position in range(3)]
    drawn = run(place, logits.repeat(3, 1), rows_of(*rows))
    kept = reference.keep(logits[0].double(), 1.0, top_k, 1.0, 0.0)
    assert kept[places].all()
    assert kept[drawn.tokens].all()


def test_close_races_end_alike(place):
    """Two tokens and no cut: late arrivals decide, which hundreds of tokens never show."""
    logits = torch.stack([torch.linspace(-2, 2, 48), torch.zeros(48)], dim=1)
    sampling = rows_of(*((1.0, 2, 1.0, 0.0, 99, position) for position in range(48)))
    drawn = run(place, logits, sampling)
    assert torch.equal(drawn.tokens, reference.sample(logits, sampling).tokens)


PUBLISHED = {
    ((0,) * 4, (0, 0)): "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b",
    (
        (2**64 - 1,) * 4,
        (2**64 - 1,) * 2,
    ): "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
    ): "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
}
"""Known answers of Random123 for Philox4x64-10: counter and key all zeros, all ones, and digits of pi."""


def philox(counter, key):
    """Philox4x64-10 as published, in Python's integers."""
    c0, c1, c2, c3 = counter
    low, high = key
    for _ in range(10):
        a, b = c0 * 0xD2E7470EE14C6C93, c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = b >> 64 ^ c1 ^ low, b % 2**64, a >> 64 ^ c3 ^ high, a % 2**64
        low, high = (low + 0x9E3779B97F4A7C15) % 2**64, (high + 0xBB67AE8584CAA73B) % 2**64
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("given", "words"), PUBLISHED.items(), ids=["zeros", "ones", "pi"])
def test_philox_yields_its_published_values(given, words):
    assert " ".join(f"{word:016x}" for word in philox(*given)) == words


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**63 - 1), st.integers(1, 40))
@example(2**64 - 1, 2**40, 33)
def test_bits_are_the_words_of_the_generator(seed, position, vocabulary):
    """The definition in `noise.py`, and what numpy's generator gives: 32 bits of their own for each token."""
    words = [philox((block + 1, position, 0, 0), (seed % 2**64, 0)) for block in range(-(-vocabulary // 8))]
    halves = [half for block in words for word in block for half in (word % 2**32, word >> 32)]
    assert noise.bits(seed, position, vocabulary).tolist() == halves[:vocabulary]


def test_noise_in_single_precision_is_that_in_double():
    """At the ends, too: the earliest arrival there can be, and the latest."""
    ends = np.array([0, 1, 2, 2**24, 2**31, 2**32 - 2**9, 2**32 - 1], np.uint32)
    single = noise.log_exponentials(ends).double()
    exact = torch.log(-torch.log1p(-(torch.from_numpy(ends.astype(np.float64)) + 0.5) / 2**32))
    torch.testing.assert_close(single[:5], exact[:5], atol=1e-6, rtol=1e-6)
    assert single.isfinite().all()
    assert (single.diff() >= 0).all()
    drawn = noise.bits(3, 5, 10_000)
    torch.testing.assert_close(
        noise.log_exponentials(drawn).double(),
        torch.log(noise.exponentials(3, 5, 10_000)),
        atol=2e-5,
        rtol=2e-5,
    )


def test_draws_follow_the_probabilities():
    """Chi-squared of 4,000 draws over 8 tokens: 7 degrees of freedom exceed 24.3 once in a thousand seeds."""
    probabilities = torch.tensor([0.4, 0.2, 0.15, 0.1, 0.06, 0.05, 0.03, 0.01], dtype=torch.float64)
    scores = probabilities.log()
    draws = torch.stack(
        [scores - noise.exponentials(7, position, 8).log() for position in range(4000)]
    ).argmax(1)
    counts = torch.bincount(draws, minlength=8)
    expected = probabilities * 4000
    assert float(((counts - expected) ** 2 / expected).sum()) < 24.3


def test_a_row_does_not_depend_on_its_neighbours(place):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(4, 250, generator=generator) * 2
    rows = [
        (0.9, 30, 0.8, 0.0, 11, 4),
        (0.0, 1, 1.0, 0.0, 0, 0),
        (1.5, 250, 0.3, 0.1, 3, 9),
        (1.0, 250, 1.0, 0.0, 1, 1),
    ]
    together = run(place, logits, rows_of(*rows), top_n=2)
    for row in range(4):
        alone = run(place, logits[row : row + 1].clone(), rows_of(rows[row]), top_n=2)
        for field in dataclasses.fields(Sampled):
            assert torch.equal(getattr(alone, field.name)[0], getattr(together, field.name)[row]), (
                row,
                field.name,
            )


def test_misfits_are_refused(place):
    sampling = rows_of((1.0, 10, 1.0, 0.0, 1, 1))
    with pytest.raises(ValueError, match="too many"):
        run(place, torch.zeros(1, 50), sampling, top_n=51)
    with pytest.raises(ValueError, match="last dimension of logits"):
        run(place, torch.zeros(1, 100)[:, ::2], sampling)
