"""Generators: the same seed the same trace, and the rates, bursts and lengths that were asked for."""

import numpy as np
import pytest

from tokenmux.workload.generate import (
    Diurnal,
    Process,
    Renewal,
    gamma_with_cv,
    poisson,
    traffic,
    zipf_rates,
)
from tokenmux.workload.lengths import CHAT, LengthTable, fixed


@pytest.mark.parametrize("process", [poisson, gamma_with_cv(3.0), Renewal("weibull", 0.6), Diurnal(1000.0)])
def test_rate_order_and_seed(process: Process) -> None:
    times = process(np.random.default_rng(1), 2.0, 20_000.0)
    again = process(np.random.default_rng(1), 2.0, 20_000.0)
    assert np.array_equal(times, again)
    assert np.all(np.diff(times) >= 0)
    assert 0 <= times[0] <= times[-1] < 20_000.0
    assert len(times) == pytest.approx(40_000, rel=0.06)


def test_gamma_has_the_variation_asked_for() -> None:
    gaps = np.diff(gamma_with_cv(4.0)(np.random.default_rng(0), 1.0, 200_000.0))
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(4.0, rel=0.05)


def test_diurnal_is_busier_at_its_crest() -> None:
    times = Diurnal(period_s=1000.0, swing=0.9)(np.random.default_rng(0), 50.0, 1000.0)
    crest, trough = np.sum(times < 500), np.sum(times >= 500)
    assert crest > 3 * trough


def test_a_rate_of_zero_makes_nothing() -> None:
    assert len(gamma_with_cv(2.0)(np.random.default_rng(0), 0.0, 100.0)) == 0


def test_zipf_rates_add_up_and_fall() -> None:
    rates = zipf_rates(10, 5.0, 1.5)
    assert sum(rates) == pytest.approx(5.0)
    assert rates[0] / rates[3] == pytest.approx(4**1.5)


def test_traffic_is_in_order_and_has_all_models() -> None:
    trace = traffic(np.random.default_rng(0), {"a": 1.0, "b": 3.0}, 1000.0, fixed(7, 9))
    assert [line.arrival_s for line in trace] == sorted(line.arrival_s for line in trace)
    assert sum(line.model == "b" for line in trace) == pytest.approx(3000, rel=0.1)
    assert {(line.input_tokens, line.output_tokens) for line in trace} == {(7, 9)}


def test_lengths_are_drawn_from_the_table() -> None:
    table = LengthTable((0.0, 0.5, 1.0), (1, 11, 101))
    assert [table.at(share) for share in (0.0, 0.25, 0.5, 1.0)] == [1, 6, 11, 101]
    drawn = table.draw(np.random.default_rng(0), 40_000)
    assert np.mean(drawn) == pytest.approx(table.mean, rel=0.03)
    assert table.scaled(2.0).at(0.5) == 22


def test_chat_lengths_have_the_published_means() -> None:
    """699 tokens in and 294 out over the artifact's 71,786 requests, the longest prompts cut."""
    assert CHAT.input.mean == pytest.approx(690, rel=0.05)
    assert CHAT.output.mean == pytest.approx(294, rel=0.05)
