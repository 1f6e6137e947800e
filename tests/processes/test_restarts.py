"""How soon what broke is started again."""

from hypothesis import given
from hypothesis import strategies as st

from tokenmux.processes.restarts import RestartLimits


def test_the_first_short_lives_are_replaced_at_once_and_waits_double_up_to_the_longest() -> None:
    limits = RestartLimits(n=3, first_wait_s=1.0, longest_wait_s=10.0)
    assert [limits.wait_s(n) for n in range(9)] == [0, 0, 0, 0, 1, 2, 4, 8, 10]


@given(st.integers(0, 10**9))
def test_no_number_of_deaths_is_too_large_and_no_wait_is_shorter_than_the_one_before(n: int) -> None:
    limits = RestartLimits()
    assert 0 <= limits.wait_s(n) <= limits.wait_s(n + 1) <= limits.longest_wait_s
