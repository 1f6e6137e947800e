"""Counters of several instances as one."""

from dataclasses import fields
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from tokenmux.core.started import SwapReason
from tokenmux.scheduler.metrics.counters import MODEL_TABLE, SERVICE_TABLE, ModelCounters, ServiceCounters
from tokenmux.scheduler.metrics.histogram import Histogram
from tokenmux.scheduler.metrics.summing import summed

SMALL = st.integers(0, 1000)


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    made = Histogram()
    for seconds in draw(st.lists(st.integers(0, 100).map(float), max_size=5)):
        made.add(seconds)
    return made


@st.composite
def services(draw: st.DrawFn) -> ServiceCounters:
    made = ServiceCounters()
    for field in fields(ServiceCounters):
        value = getattr(made, field.name)
        setattr(made, field.name, draw(histograms() if isinstance(value, Histogram) else SMALL))
    return made


@st.composite
def models(draw: st.DrawFn) -> ModelCounters:
    swaps = {reason: draw(SMALL) for reason in SwapReason}
    rest = [draw(SMALL) for _ in range(4)]
    return ModelCounters(draw(services()), swaps, *rest, last_asked_s=draw(SMALL.map(float)))


@given(st.lists(models(), min_size=1, max_size=4))
def test_every_number_of_a_row_is_the_sum_of_the_rows(parts: list[ModelCounters]) -> None:
    whole = summed(parts)
    rows = [MODEL_TABLE.row(part) for part in parts]
    assert MODEL_TABLE.row(whole) == tuple(map(sum, zip(*rows, strict=True)))
    assert whole.last_asked_s == max(part.last_asked_s for part in parts)


@given(st.lists(services(), min_size=1, max_size=4))
def test_histograms_and_means_are_those_of_all(parts: list[ServiceCounters]) -> None:
    whole = summed(parts)
    assert whole.ttft.n == sum(part.ttft.n for part in parts)
    assert whole.gaps.total_s == sum(part.gaps.total_s for part in parts)
    n = sum(part.n_attained for part in parts)
    if n:
        assert whole.artifact_attainment == sum(part.attained for part in parts) / n
    names = SERVICE_TABLE.named(SERVICE_TABLE.row(whole))
    assert names["n_tokens"] == sum(part.n_tokens for part in parts)


@given(services(), services())
def test_the_parts_stay_as_they_are(first: ServiceCounters, second: ServiceCounters) -> None:
    before = [SERVICE_TABLE.row(part) for part in (first, second)]
    whole = summed([first, second])
    whole.ttft.add(1.0)
    whole.n_tokens += 1
    assert [SERVICE_TABLE.row(part) for part in (first, second)] == before
    assert summed([first]) is first


def test_what_was_never_asked_for_has_no_last_time() -> None:
    assert summed([ModelCounters(), ModelCounters()]).last_asked_s == -inf
