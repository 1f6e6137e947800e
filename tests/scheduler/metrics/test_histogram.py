"""Histograms against sorted lists of the same durations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.client import Durations
from tokenmux.scheduler.metrics.histogram import BOUNDS_S, Histogram

durations = st.lists(st.floats(0.0, 600.0), min_size=1, max_size=50)


@given(durations, st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_the_upper_bound_of_the_interval_that_holds_it(
    seconds: list[float], share: float
) -> None:
    histogram = Histogram()
    for value in seconds:
        histogram.add(value)
    ordered = sorted(seconds)
    n_below = -(-share * len(ordered) // 1)
    exact = ordered[max(0, int(n_below) - 1)]
    found = histogram.percentile(share)
    assert found == next(bound for bound in BOUNDS_S if exact <= bound)
    assert histogram.n == len(seconds)
    assert histogram.total_s == pytest.approx(sum(seconds))


@given(durations, st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_client_reads_the_same_percentiles(seconds: list[float], share: float) -> None:
    """The client imports nothing of ours, so it has a reading of its own."""
    histogram = Histogram()
    for value in seconds:
        histogram.add(value)
    seen = Durations(tuple(histogram.counts), histogram.total_s)
    assert seen.percentile(share, BOUNDS_S) == histogram.percentile(share)


@given(durations, durations)
def test_histograms_add_up(some: list[float], others: list[float]) -> None:
    a, b, both = Histogram(), Histogram(), Histogram()
    for histogram, values in ((a, some), (b, others), (both, some + others)):
        for value in values:
            histogram.add(value)
    a.merge(b)
    assert a.counts == both.counts
    assert a.total_s == pytest.approx(both.total_s)


def test_many_of_one_length_are_one_addition() -> None:
    histogram = Histogram()
    histogram.add(0.02, 7)
    assert (histogram.n, histogram.total_s) == (7, pytest.approx(0.14))


def test_what_is_longer_than_all_bounds_is_counted() -> None:
    histogram = Histogram()
    histogram.add(10_000.0)
    assert histogram.counts[-1] == 1
    assert histogram.percentile(0.5) == BOUNDS_S[-1]
    assert Histogram().percentile(0.5) == 0.0
