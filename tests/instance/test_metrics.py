"""What counts as on time, against its definition."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmux.engine.core.facts import ModelId
from tokenmux.engine.core.request import FinishReason, Request, RequestId, ServiceLevel
from tokenmux.engine.instance.metrics import RequestRecord, count_on_time

eighths = st.integers(0, 80).map(lambda n: n / 8)
"""Times whose sums are exact, so that `exactly on time` is hit, and hit on both sides."""


@settings(max_examples=300)
@given(
    arrival_s=eighths,
    ttft_s=eighths,
    tpot_s=eighths,
    index=st.integers(0, 5),
    gaps_s=st.lists(eighths, max_size=12),
)
def test_a_token_is_on_time_when_it_is_there_by_its_deadline(
    arrival_s: float, ttft_s: float, tpot_s: float, index: int, gaps_s: list[float]
) -> None:
    """Token i is due at arrival + TTFT + i * TPOT, counted from whichever token a step draws first."""
    request = Request(RequestId("r"), ModelId("m"), 1, 20, arrival_s, ServiceLevel(ttft_s, tpot_s))
    ends_s = tuple(arrival_s + sum(gaps_s[: i + 1]) for i in range(len(gaps_s)))
    naive = sum(end_s <= arrival_s + ttft_s + (index + i) * tpot_s for i, end_s in enumerate(ends_s))
    assert count_on_time(request.deadline_s(index), tpot_s, ends_s) == naive


def record(n_tokens: int, first_token_s: float | None, last_token_s: float | None) -> RequestRecord:
    request = Request(RequestId("r"), ModelId("m"), 1, 20, 10.0)
    return RequestRecord(request, FinishReason.STOP, first_token_s, 20.0, last_token_s, n_tokens, 0)


def test_a_record_derives_its_latencies() -> None:
    assert record(5, 11.0, 13.0).ttft_s == 1.0
    assert record(5, 11.0, 13.0).tpot_s == 0.5
    assert record(1, 11.0, 11.0).tpot_s is None, "one token has no time between"
    assert record(0, None, None).ttft_s is None
