"""Figures of merit: strict ones, and the artifact's own, which flatters as it is said to."""

import pytest

from tokenmux.core.facts import ModelId
from tokenmux.core.record import RequestRecord
from tokenmux.core.request import FinishReason, Request, RequestId, ServiceLevel
from tokenmux.scheduler.metrics.artifact_allowance import ArtifactAllowance
from tokenmux.scheduler.metrics.counters import ServiceCounters
from tokenmux.scheduler.metrics.histogram import Histogram
from tokenmux.scheduler.metrics.summary import summarise, summary_of


def record(name: str, n_tokens: int, n_on_time: int, late_s: float = 0.0) -> RequestRecord:
    request = Request(RequestId(name), ModelId("m"), 10, 100, 1.0, ServiceLevel(2.0, 0.1))
    return RequestRecord(request, FinishReason.STOP, 2.0, 11.0, 11.0, n_tokens, n_on_time, late_s)


def test_shares_are_of_all_tokens_due() -> None:
    summary = summarise([record("1", 10, 10), record("2", 30, 15)], n_tokens_never_drawn=10)
    assert (summary.n_requests, summary.n_tokens) == (2, 50)
    assert summary.tokens_on_time == 0.5
    assert summary.requests_on_time == 0.5
    assert summary.ttft_p50_s == 1.0
    assert summary.goodput_tokens_per_s == 2.5


def test_nothing_measured_is_nothing_late() -> None:
    assert summarise([]).tokens_on_time == 1.0


def test_the_artifact_gives_the_full_allowance_back_after_a_miss() -> None:
    """TTFT 1 s, TPOT 0.1 s. First token after 3 s: late by 2; then a second of allowance stands again."""
    allowance = ArtifactAllowance(1.0)
    allowance.drawn(0.0, (3.0,), 0.1)
    assert (allowance.late_s, allowance.allowance_s) == (2.0, pytest.approx(1.1))
    allowance.drawn(3.0, (4.0, 4.05, 4.1), 0.1)
    assert (allowance.late_s, allowance.allowance_s) == (2.0, pytest.approx(0.3))
    allowance.drawn(4.1, (5.1,), 0.1)
    assert allowance.late_s == pytest.approx(2.7)
    assert summarise([record("1", 5, 0, late_s=2.7)]).artifact_attainment == pytest.approx(0.73)


def test_many_tokens_at_once_count_as_one_by_one() -> None:
    ends = (0.5, 0.9, 1.9, 2.0, 2.4)
    one, together = ArtifactAllowance(0.6), ArtifactAllowance(0.6)
    together.drawn(0.0, ends, 0.1)
    since = 0.0
    for end in ends:
        one.drawn(since, (end,), 0.1)
        since = end
    assert (one.late_s, one.allowance_s) == (
        pytest.approx(together.late_s),
        pytest.approx(together.allowance_s),
    )


def test_counters_and_records_sum_up_alike() -> None:
    records = [record("1", 10, 10), record("2", 30, 15, late_s=2.0)]
    counters, gaps = ServiceCounters(n_tokens=40, n_tokens_on_time=25), Histogram()
    for each in records:
        counters.count_end(each)
        counters.ttft.add(each.ttft_s or 0.0)
    gaps.add(0.03, 38)
    counters.gaps = gaps
    exact, counted = summarise(records, gaps=gaps), summary_of(counters, 10.0)
    assert counted.as_dict() == pytest.approx(exact.as_dict() | {"tpot_p50_s": 0.4, "tpot_p99_s": 1.0})
