"""The fluid estimate, the causal forecast, and the outlook that a plan gives from recorded traffic."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.core.request import ServiceLevel
from tokenmux.simulator.architectures import architecture
from tokenmux.simulator.fluid import Flow, calibration, fluid_devices
from tokenmux.simulator.forecast import error_on, forecast, margin
from tokenmux.simulator.planner.outlook import flows_of, outlook
from tokenmux.simulator.planner.simulated_job import World
from tokenmux.simulator.scenario import Hardware, market, true_cost
from tokenmux.workload.generate import traffic
from tokenmux.workload.lengths import fixed
from tokenmux.workload.trace import arrivals


def test_the_larger_of_the_last_hour_and_the_same_hour_a_day_before() -> None:
    day = [float(hour) for hour in range(24)]
    assert forecast([3.0]) == 3.0
    assert forecast([3.0, 5.0], ahead=4) == 5.0
    assert forecast(day) == 23.0
    assert forecast([9.0, *day[1:-1], 2.0]) == 9.0  # the hour after is hour 0 of the day before
    assert forecast([9.0, 7.0, *[1.0] * 22], ahead=2) == 7.0
    for past, ahead in (([], 1), ([1.0], 0), ([1.0], 25)):
        with pytest.raises(ValueError, match="hour"):
            forecast(past, ahead)


def test_a_forecast_does_not_know_what_comes_later() -> None:
    past = [float(n) for n in np.random.default_rng(1).integers(1, 40, 60)]
    for hour in range(1, 60):
        assert forecast(past[:hour]) in past[:hour]
    error = error_on(past)
    assert error.n_hours == 59
    assert error.n_short == sum(forecast(past[:h]) < past[h] for h in range(1, 60)) > 0
    assert error_on([4.0, 4.0, 4.0]).mean_share == 0.0
    assert error_on([2.0, 4.0]).mean_share == pytest.approx(0.5)


def lacked(past: list[float], added: float, ahead: int = 1) -> float:
    """What the recorded hours would have lacked if this had been added to every forecast."""
    expected = [forecast(past[: hour - ahead + 1], ahead) + added for hour in range(ahead, len(past))]
    return sum(max(0.0, n - e) for n, e in zip(past[ahead:], expected, strict=True))


@given(
    past=st.lists(st.floats(0, 100), min_size=1, max_size=60),
    covered=st.floats(0, 1),
    ahead=st.integers(1, 24),
)
def test_a_margin_covers_what_it_should_and_is_no_larger(
    past: list[float], covered: float, ahead: int
) -> None:
    found = margin(past, covered, ahead)
    needed = sum(past[ahead:])
    allowed, fuzz = (1 - covered) * needed, 1e-9 * (1 + needed)
    assert found >= 0
    assert lacked(past, found, ahead) <= allowed + fuzz
    if found > 1e-6:
        assert lacked(past, found - 1e-6, ahead) > allowed - fuzz
        assert margin(past, min(1.0, covered + 0.01), ahead) >= found - fuzz


def test_a_margin_is_the_error_that_was_seen_and_a_burst_asks_for_as_much_in_every_hour() -> None:
    quiet = [2.0] * 30
    assert margin(quiet) == margin([5.0]) == margin([]) == 0.0
    assert margin([9.0, 7.0, 3.0]) == 0.0  # always too large
    assert margin([2.0, 5.0], 1.0) == 3.0
    assert margin([2.0, 5.0], 0.8) == pytest.approx(2.0)
    assert margin([*quiet, 42.0], 1.0) == 40.0
    assert margin([0.0, 0.0, 4.0], 1.0) == 4.0  # where a factor could do nothing
    for covered in (-0.1, 1.1):
        with pytest.raises(ValueError, match="share"):
            margin(quiet, covered)


def test_the_fluid_grows_with_traffic_and_is_near_a_step_per_tpot_for_a_busy_model() -> None:
    models = market({"m": architecture("qwen2.5-7b")})
    cost = true_cost(models, Hardware(), Hardware().instance(models))
    (facts,) = models.facts.values()

    def devices(rate_rps: float, service: ServiceLevel = ServiceLevel()) -> float:  # noqa: B008 - a value
        return fluid_devices([Flow(facts, rate_rps, 300, 200, service)], cost)

    assert devices(0.0) == 0.0
    assert 0 < devices(0.01) < devices(0.1) < devices(1.0) < devices(10.0)
    assert 0.1 < devices(1.0) < 0.4
    assert devices(0.1, ServiceLevel(1.0, 0.02)) > devices(0.1)
    assert calibration([4, 9], [2.0, 3.0]) == pytest.approx(8.5 / 3.0)
    assert calibration([1], [0.9]) == 1.0
    assert calibration([], []) == 1.0


def test_an_outlook_scales_the_busiest_hour_to_what_was_simulated() -> None:
    models = market({f"m{i}": architecture("qwen2.5-7b") for i in range(4)})
    quiet = traffic(np.random.default_rng(0), dict.fromkeys(models.facts, 0.005), 3 * 3600.0, fixed(100, 50))
    busy = traffic(np.random.default_rng(1), {"m0": 0.2}, 3600.0, fixed(100, 50))
    busy = [replace(line, arrival_s=line.arrival_s + 3700.0) for line in busy if line.arrival_s < 3300.0]
    requests = arrivals(sorted(quiet + busy, key=lambda line: line.arrival_s), models.max_context)
    world = World(models, requests, Hardware())
    found = outlook(world, 3)
    assert found is not None
    assert len(found.past) == 2  # the record ends just before its third hour is full
    assert max(found.past) == pytest.approx(3.0)
    assert found.past[0] > found.past[1]
    assert set(found.coming) == {1}
    assert found.error.n_hours == 1
    assert f"{found.coming[0]}, " in found.sentence("H100")
    assert outlook(World(models, requests[:3], Hardware()), 1) is None
    assert sum(flow.rate_rps for flow in flows_of(requests, models, 3600.0)) == pytest.approx(
        len(requests) / 3600
    )
