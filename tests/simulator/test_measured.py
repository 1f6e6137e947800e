"""A cost model of measurements finds again what made them."""

import random

import pytest

from tokenmux.core.cost import StepWork
from tokenmux.core.effects import CopyEnded, OperationEnded, StepEnded
from tokenmux.core.errors import InternalError
from tokenmux.core.event import CopyDone, StepDone
from tokenmux.core.facts import KvShape, ModelFacts
from tokenmux.core.plan import Activate, Channel, Chunk, Step
from tokenmux.core.request import RequestId
from tokenmux.core.started import StartedActivation, StartedStep, SwapReason
from tokenmux.simulator.measured import fit_cost, shape_of
from tokenmux.testing import make_model

INTERFERENCE = 1.4


def of_layers(name: str, n_layers: int = 4) -> ModelFacts:
    return make_model(name, kv=KvShape(n_layers, 2, 64, 2, 16), max_context=512, n_parameters=10**6)


def truth_s(facts: ModelFacts, work: StepWork) -> float:
    scale = facts.kv.n_layers / 4
    alone_s = scale * (
        0.01 + 2e-4 * work.prefill_tokens + 1e-3 * work.decode_rows + 1e-6 * work.context_tokens
    )
    return alone_s * (INTERFERENCE if work.beside_copy else 1.0)


def history(models: list[ModelFacts], n: int = 300) -> list[OperationEnded]:
    """Steps of random work and a copy now and then, a millisecond between the end of one and the next."""
    generator = random.Random(0)
    done: list[OperationEnded] = []
    at_s = 0.0
    for i in range(n):
        facts = generator.choice(models)
        is_prefill = generator.random() < 0.3
        rows = generator.randrange(0 if is_prefill else 1, 9)
        work = StepWork(
            generator.randrange(1, 200) if is_prefill else 0, 0, rows, rows * 50, generator.random() < 0.4
        )
        chunks = (Chunk(RequestId("r"), 0, 1),)
        repeat = 1 if is_prefill else 4
        ends_s, now_s = [], at_s
        for _ in range(repeat):
            now_s += truth_s(facts, work)
            ends_s.append(now_s)
        started = StartedStep(i, at_s, Step(facts.id, chunks, repeat), facts, work)
        done.append(StepEnded(started, StepDone(now_s, i, tuple(ends_s)), ()))
        if i % 10 == 0:
            n_bytes = generator.randrange(10**6, 10**8)
            copy = StartedActivation(
                n + i, at_s, Activate(facts.id), facts, facts.images, n_bytes, SwapReason.FIRST, 0.0
            )
            done.append(CopyEnded(copy, CopyDone(at_s + 1e-4 + n_bytes / 1e10, n + i)))
        at_s = now_s + 1e-3
    return done


def test_it_finds_what_the_steps_were_made_of() -> None:
    models = [of_layers("a"), of_layers("b"), of_layers("deep", n_layers=8)]
    cost = fit_cost(history(models))
    assert cost.interference == pytest.approx(INTERFERENCE, 0.02)
    assert set(cost.steps) == {shape_of(models[0]), shape_of(models[2])}
    for facts in models:
        for work in (StepWork(150), StepWork(0, 0, 8, 400), StepWork(50, 0, 3, 150, True)):
            assert cost.step_s(facts, work) - cost.turnaround_s == pytest.approx(truth_s(facts, work), 0.05)
    assert 2e-4 < cost.turnaround_s < 1e-3
    for channel in (Channel.COPY_IN, Channel.COPY_OUT):
        assert cost.copy_s(channel, 5 * 10**7) == pytest.approx(1e-4 + 5e-3, 0.02)


def test_nothing_measured_is_said_to_be_nothing() -> None:
    with pytest.raises(InternalError, match="no step"):
        fit_cost([])
    steps_only = [ended for ended in history([of_layers("a")], 20) if isinstance(ended, StepEnded)]
    with pytest.raises(InternalError, match="no copy"):
        fit_cost(steps_only)
