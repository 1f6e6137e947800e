"""Accounts of tenants: whose lateness counts how much."""

from hypothesis import given
from hypothesis import strategies as st

from tokenmux.core.facts import ModelId
from tokenmux.core.request import Request, RequestId, ServiceLevel
from tokenmux.scheduler.metrics.shares import DEFERRAL_TTFTS, GRACE_TTFTS, QUANTUM_TTFTS, Shares


def request(tenant: str) -> Request:
    return Request(RequestId(tenant), ModelId("m"), 1, 1, 0.0, ServiceLevel(10.0, 0.1), tenant)


def test_alone_nobody_is_ahead() -> None:
    shares = Shares()
    share = shares.enter(request("a"))
    share.had_s += 100
    shares.settle()
    assert shares.even
    assert share.patience == 1.0


def test_what_was_had_counts_only_against_those_who_want_something() -> None:
    shares = Shares()
    ahead, behind = shares.enter(request("a")), shares.enter(request("b"))
    ahead.had_s += 10 * QUANTUM_TTFTS * 10
    shares.settle()
    assert (shares.even, behind.patience, ahead.patience) == (False, 1.0, 1 / 121)
    shares.leave(behind)
    assert (shares.even, ahead.patience) == (True, 1.0)


def test_who_comes_back_owes_what_it_owed() -> None:
    shares = Shares()
    ahead, behind = shares.enter(request("a")), shares.enter(request("b"))
    ahead.had_s += 10
    shares.settle()
    shares.leave(ahead)
    assert shares.enter(request("a")).had_s == behind.had_s + 10


def test_when_all_is_quiet_everything_is_forgotten() -> None:
    shares = Shares()
    ahead, behind = shares.enter(request("a")), shares.enter(request("b"))
    ahead.had_s += 10
    shares.leave(ahead)
    shares.leave(behind)
    assert shares.enter(request("a")).had_s == shares.enter(request("b")).had_s


@given(st.floats(0, 1e4), st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=5))
def test_order_within_a_tenant_is_that_of_deadlines(ahead_s: float, deadlines: list[float]) -> None:
    shares = Shares()
    ahead, _ = shares.enter(request("a")), shares.enter(request("b"))
    ahead.had_s += ahead_s
    shares.settle()
    shares.now_s = 0.0
    assert sorted(deadlines, key=lambda d: shares.due_s(ahead, d)) == sorted(deadlines)
    assert all(shares.due_s(ahead, d) == d for d in deadlines if d >= 0)


def test_what_is_late_by_more_than_its_grace_is_deferred() -> None:
    shares = Shares(ttft_s=2.0)
    assert shares.deferral_s == 2 * DEFERRAL_TTFTS
    shares.now_s = 100.0
    assert shares.ordered_s(97.0, lead_s=0.0, grace_s=3.0, deferral_s=20.0) == 97.0
    assert shares.ordered_s(96.9, lead_s=0.0, grace_s=3.0, deferral_s=20.0) == 96.9 + 20.0
    assert shares.ordered_s(97.0, lead_s=5.0, grace_s=3.0, deferral_s=20.0) == 92.0


def test_the_grace_is_that_of_the_more_patient_of_request_and_pool() -> None:
    assert Shares(ttft_s=2.0).grace_s(request("a")) == GRACE_TTFTS * 10.0
    assert Shares(ttft_s=600.0).grace_s(request("a")) == GRACE_TTFTS * 600.0


@given(st.floats(0, 1e3), st.floats(0, 1e3), st.floats(0, 1e3))
def test_a_deferred_request_still_goes_before_all_that_is_due_much_later(
    deadline_s: float, later_s: float, waited_s: float
) -> None:
    """Waiting stays bounded: whatever is due later by more than the deferral stays behind it for ever."""
    shares = Shares(ttft_s=1.0)
    shares.now_s = waited_s
    other_s = deadline_s + 1.001 * DEFERRAL_TTFTS + later_s
    deferral_s = shares.deferral_s
    assert shares.ordered_s(deadline_s, 0.0, 0.3, deferral_s) < shares.ordered_s(
        other_s, 0.0, 0.3, deferral_s
    )
