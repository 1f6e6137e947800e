"""The market's pools: an elastic one does not look ahead, and each pays and serves what it says."""

from dataclasses import replace

import pytest

from benchmarks.market_pools import Sizes, elastic_pool, fixed_pool
from benchmarks.market_week import HOUR_S, Slot, Week, generated_week
from tokenmux.workload.servegen import WINDOW_S

N_HOURS = 30


@pytest.fixture(scope="module")
def week() -> Week:
    made = generated_week(N_HOURS, n_models=20)
    made.factors = {0: 1.2, 1: 1.5}
    return made


def test_the_elastic_pool_is_decided_ten_minutes_before_the_hour(week: Week) -> None:
    """More of everything from some moment on changes no size that was decided before."""
    hours = range(N_HOURS)
    before = elastic_pool(week, hours).by_part
    for hour in (1, 7, 26):
        known_s = hour * HOUR_S - WINDOW_S
        grown = [
            [replace(w, rate_rps=50 * w.rate_rps) if w.start_s >= known_s else w for w in windows]
            for windows in week.hours
        ]
        after = elastic_pool(Week(week.parts, grown, week.lengths, factors=week.factors), hours).by_part
        for own, other in zip(before, after, strict=True):
            assert own[1 : hour + 1] == other[1 : hour + 1]  # the very first hour is given
        assert after != before


def test_a_fixed_pool_is_as_large_as_the_busiest_ten_minutes_need(week: Week) -> None:
    (small, large), hours = fixed_pool(week, range(N_HOURS)).by_part, range(N_HOURS)
    for index, sizes in enumerate((small, large)):
        assert set(sizes) == {sizes[0]}
        assert sizes[0] - 1 < max(1.0, *(week.needed(index, hour) for hour in hours)) <= sizes[0]


def test_devices_are_paid_for_while_they_warm_up_and_drain(week: Week) -> None:
    sizes = Sizes([[1, 3, 2], [1, 1, 1]])
    assert [part.n_devices for part in week.parts] == [1, 4]
    assert sizes.device_hours(week.parts) == pytest.approx(6 + 4 * 3 + (2 * 180 + 60) / 3600)
    assert [sizes.devices(week.parts, place) for place in range(3)] == [5, 7, 6]


def test_what_was_not_simulated_is_late_beyond_the_capacity_alone(week: Week) -> None:
    made = Week(week.parts, week.hours, week.lengths, factors={0: 1.0, 1: 1.0})
    made.slots[0][0] = [Slot(2.0, 100.0), Slot(1.0, 50.0), Slot(4.0, 200.0), *[Slot(0.0, 0.0)] * 3]
    assert made.kept(0, 0, 4, 1.0) == (350.0, 350.0)
    assert made.kept(0, 0, 2, 1.0) == (250.0, 350.0)
    assert made.kept(0, 0, 4, 0.9) == (pytest.approx(315.0), 350.0)
    assert made.kept(0, 0, 2, 0.4) == (pytest.approx(140.0), 350.0)
