"""Switches that make a simulation more pessimistic: each does what it says, to the digit, and none changes
anything unasked."""

from dataclasses import dataclass

import pytest

from benchmarks.workloads import steady
from tokenmux.core.effects import CopyEnded, Effects, StepEnded
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.core.started import StartedActivation, StartedPageIn, StartedPageOut
from tokenmux.simulator.doubts import ALL_DOUBTS, SURE, Doubts
from tokenmux.simulator.planner.named_models import parse_market
from tokenmux.simulator.scenario import Outcome, simulate
from tokenmux.workload.trace import TraceRequest, arrivals


@dataclass
class Seen:
    outcome: Outcome
    steps: list[StepEnded]
    loads: list[CopyEnded]


def seen(doubts: Doubts) -> Seen:
    """Two models with two requests each on one device: one comes in while the other steps, and then they
    take turns."""
    steps: list[StepEnded] = []
    loads: list[CopyEnded] = []

    def note(_index: int, _at_s: float, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case StepEnded():
                    steps.append(effect)
                case CopyEnded(StartedActivation()):
                    loads.append(effect)

    market = parse_market(["2*qwen2.5-7b"], {})
    lines = [TraceRequest(0.1 * i, f"qwen2.5-7b-{i % 2}", 100, 500) for i in range(4)]
    outcome = simulate(market, arrivals(lines, market.max_context), 1, on_effects=note, doubts=doubts)
    return Seen(outcome, steps, loads)


def durations(run: Seen) -> list[tuple[bool, bool, float, float]]:
    """Of each step: whether it switches models, whether a copy was beside it, what it took, and what it
    was measured to take."""
    truth = run.outcome.simulator.truths[0]
    rows, before = [], None
    for ended in run.steps:
        started, event = ended.started, ended.done
        measured, work = 0.0, started.work
        for _ in event.ends_s:
            measured += truth.step_s(started.model, work)
            work = work._replace(context_tokens=work.context_tokens + work.decode_rows)
        rows.append((started.model.id != before, work.beside_copy, event.at_s - started.at_s, measured))
        before = started.model.id
    return rows


def test_without_doubts_steps_take_what_was_measured() -> None:
    rows = durations(seen(SURE))
    assert sum(switches for switches, *_ in rows) > 2, "no turns: this shows nothing"
    assert any(beside for _, beside, *_ in rows)
    assert all(took == pytest.approx(measured) for *_, took, measured in rows)


def test_a_switch_of_models_costs_its_time_once() -> None:
    rows = durations(seen(Doubts(switch_s=0.005)))
    assert all(took == pytest.approx(measured + 0.005 * switches) for switches, _, took, measured in rows)


def test_steps_beside_a_copy_take_longer() -> None:
    rows = durations(seen(Doubts(beside_copy=1.5)))
    assert any(beside for _, beside, *_ in rows)
    assert any(not beside for _, beside, *_ in rows)
    assert all(took == pytest.approx(measured * (1.5 if beside else 1)) for _, beside, took, measured in rows)


def test_an_activation_takes_longer_than_its_copy() -> None:
    def seconds(run: Seen) -> list[float]:
        return [load.done.at_s - load.started.at_s for load in run.loads]

    sure, doubtful = seconds(seen(SURE)), seconds(seen(Doubts(activation_s=0.025)))
    assert doubtful == pytest.approx([s + 0.025 for s in sure])


def test_each_block_that_is_paged_costs_its_time() -> None:
    copies: list[CopyEnded] = []

    def note(_index: int, _at_s: float, effects: Effects) -> None:
        copies.extend(effect for effect in effects if isinstance(effect, CopyEnded))

    market, coming = steady(7, 0.457, 60.0)
    outcome = simulate(market, coming, 1, on_effects=note, doubts=Doubts(block_copy_s=0.001))
    (truth,) = outcome.simulator.truths
    n_paged = {StartedPageIn: 0, StartedPageOut: 0}
    for copy in copies:
        if isinstance(started := copy.started, StartedPageIn | StartedPageOut):
            n_blocks = sum(len(paged.transfers) for paged in started.paged)
            usual_s = truth.copy_s(started.channel, started.n_bytes)
            assert copy.done.at_s - started.at_s == pytest.approx(usual_s + 0.001 * n_blocks)
            n_paged[type(started)] += n_blocks
    assert min(n_paged.values()) > 100, "hardly anything was paged: this shows nothing"


def test_a_scheduler_that_is_told_nothing_learns() -> None:
    (instance,) = seen(Doubts(learned=True)).outcome.simulator.instances
    assert isinstance(instance.cost, RooflineCost)
    (told,) = seen(SURE).outcome.simulator.instances
    assert not isinstance(told.cost, RooflineCost)


def test_all_doubts_together_cost_time_and_no_tokens() -> None:
    sure, doubtful = seen(SURE).outcome, seen(ALL_DOUBTS).outcome
    assert doubtful.seconds > sure.seconds
    assert doubtful.summary().n_tokens == sure.summary().n_tokens == 2000
