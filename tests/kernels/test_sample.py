"""`sample` against its reference, and the reference against what is known of its parts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenmux.kernels.sample import reference
from tokenmux.kernels.sample.parameters import Penalties, Sampled, SamplingRows

LAUNCH = "tokenmux.kernels.sample.launch:sample"


def run(place, logits, sampling, *, penalties=None, top_n=0):
    """Runs the kernels with poison in every output and workspace; returns the draw and the logits as they
    left them."""
    from tokenmux.kernels.sample.launch import Workspace

    rows, vocabulary = logits.shape
    workspace = Workspace.allocate(rows, vocabulary, top_n, place.sample_tile, "cpu")
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
        penalties=penalties,
    )
    return returned["out"], returned["logits"]


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
    penalised=st.booleans(),
    single=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example([(1.0, 100_000, 1.0, 0.0, 1, 1)], 1, 1, False, False, True, 0)
@example([(1.0, 3, 1.0, 0.0, 1, 1)], 3, 3, False, False, True, 0)
@example([(1.0, 40, 0.5, 0.01, -1, 2**40)] * 3, 256, 5, True, True, False, 1)
def test_equals_its_reference(place, rows, vocabulary, top_n, masked, penalised, single, seed):
    generator = torch.Generator().manual_seed(seed)
    dtype = place.dtypes[0 if single else 1]
    count = len(rows)
    padding = torch.full((count, 48), float("nan"))
    logits = torch.randn(count, vocabulary, generator=generator) * 3
    if masked:  # as a grammar does, and a whole tile of it
        logits[:, 20 : 20 + vocabulary // 2] = float("-inf")
        logits[:, 3] = float("nan")
    logits = torch.cat([logits, padding], dim=1).to(dtype)[:, :vocabulary]
    penalties = make_penalties(count, vocabulary, generator) if penalised else None
    sampling = rows_of(*rows)

    drawn, changed = run(place, logits, sampling, penalties=penalties, top_n=top_n)
    expected = reference.sample(logits, sampling, penalties=penalties, top_n=top_n)
    # Penalties are rounded to the logits' dtype: the device may multiply and add in one rounding.
    torch.testing.assert_close(
        changed, logits, rtol=1e-6 if dtype is torch.float32 else 8e-3, atol=1e-6, equal_nan=True
    )
    assert torch.equal(drawn.tokens, expected.tokens)
    torch.testing.assert_close(drawn.log_probabilities, expected.log_probabilities, atol=1e-4, rtol=1e-4)
    finite = expected.top_log_probabilities.isfinite()
    assert torch.equal(drawn.top_tokens[finite], expected.top_tokens[finite])
    torch.testing.assert_close(
        drawn.top_log_probabilities, expected.top_log_probabilities, atol=1e-4, rtol=1e-4
    )


def make_penalties(rows, vocabulary, generator):
    """Ragged lists of distinct tokens; entries past a list's end are out of bounds."""
    entries = 7
    tokens = torch.full((rows, entries), 2**30, dtype=torch.int32)
    lengths = torch.randint(0, min(entries, vocabulary) + 1, (rows,), generator=generator).int()
    for row, used in enumerate(lengths.tolist()):
        tokens[row, :used] = torch.randperm(vocabulary, generator=generator)[:used].int()
    return Penalties(
        tokens=tokens,
        counts=torch.randint(0, 4, (rows, entries), generator=generator).int(),
        lengths=lengths,
        repetition=torch.rand(rows, generator=generator) + 0.8,
        frequency=torch.rand(rows, generator=generator) - 0.3,
        presence=torch.rand(rows, generator=generator) - 0.3,
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
    drawn, _ = run(place, logits.repeat(3, 1), rows_of(*rows))
    kept = reference.keep(logits[0].double(), 1.0, top_k, 1.0, 0.0)
    assert kept[places].all()
    assert kept[drawn.tokens].all()


def test_close_races_end_alike(place):
    """Two tokens and no cut: late arrivals decide, which hundreds of tokens never show."""
    logits = torch.stack([torch.linspace(-2, 2, 48), torch.zeros(48)], dim=1)
    sampling = rows_of(*((1.0, 2, 1.0, 0.0, 99, position) for position in range(48)))
    drawn, _ = run(place, logits, sampling)
    assert torch.equal(drawn.tokens, reference.sample(logits, sampling).tokens)


def test_philox_yields_its_published_values():
    """The known answers of Random123 for Philox4x32-10: counter and key all zeros, all ones, and digits of
    pi."""
    ones = 0xFFFFFFFF
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    known = {
        ((0, 0, 0, 0), (0, 0)): [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        ((ones,) * 4, (ones, ones)): [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        pi: [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    }
    for (counter, key), words in known.items():
        assert [int(word) for word in reference.philox([torch.tensor(c) for c in counter], key)] == words


def test_draws_follow_the_probabilities():
    """Chi-squared of 4,000 draws over 8 tokens: 7 degrees of freedom exceed 24.3 once in a thousand seeds."""
    probabilities = torch.tensor([0.4, 0.2, 0.15, 0.1, 0.06, 0.05, 0.03, 0.01], dtype=torch.float64)
    scores = probabilities.log()
    draws = torch.stack(
        [scores - reference.exponentials(7, position, 8).log() for position in range(4000)]
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
    together, _ = run(place, logits, rows_of(*rows), top_n=2)
    for row in range(4):
        alone, _ = run(place, logits[row : row + 1].clone(), rows_of(rows[row]), top_n=2)
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
