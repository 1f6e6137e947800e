"""Which operation hangs, by what is known of it; and the engine that says so. All on virtual time."""

from dataclasses import replace

import pytest

from tests.executor.test_engine import A, engine, request
from tokenmux.core.cost import StepWork
from tokenmux.core.facts import DeviceFacts, KvShape
from tokenmux.core.plan import Step
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.executor.loop import BEAT_S, EngineLoop
from tokenmux.executor.stalls import STALL_FACTOR, STALL_FLOOR_S, Stalls
from tokenmux.messages.commands import Resize, Submit
from tokenmux.messages.reports import Alive, Broken
from tokenmux.testing import make_model
from tokenmux.testing.started_operations import make_started_activation, make_started_fetch, make_started_step
from tokenmux.testing.virtual_engine import HOST

MODEL = make_model("m", 10**9, kv=KvShape(16, 8, 64, 2, 16), max_context=4096, n_parameters=10**9)
SLOW = DeviceFacts("slow", 2 * 10**9, 10**9, 1e9, 1e9, 1e9, 1e10, slab_bytes=64 << 20)


def stalls(device: DeviceFacts = SLOW) -> Stalls:
    return Stalls(RooflineCost(device, HOST))


FAST = replace(SLOW, flops_per_s=1e15, memory_bytes_per_s=1e13)


def test_a_short_step_may_be_silent_for_the_floor_and_no_longer() -> None:
    found = stalls(FAST)
    found.began(make_started_step(7, MODEL, work=StepWork(decode_rows=1)), 0.0)
    assert found.find(STALL_FLOOR_S) is None
    assert "a step of m on the channel compute" in str(found.find(STALL_FLOOR_S + 0.1))


def test_a_step_that_is_expected_to_take_minutes_is_left_alone() -> None:
    """100,000 tokens of a billion parameters on ten billion operations a second: more than five hours."""
    work = StepWork(prefill_tokens=100_000, prefill_pairs=100_000**2 // 2)
    expected_s = RooflineCost(SLOW, HOST).step_s(MODEL, work)
    assert expected_s > 5 * 3600
    found = stalls()
    found.began(make_started_step(7, MODEL, work=work), 0.0)
    assert found.find(STALL_FACTOR * expected_s) is None
    assert found.find(STALL_FACTOR * expected_s + 1) is not None


def test_what_took_long_before_may_take_long_again() -> None:
    found = stalls(FAST)
    found.began(make_started_step(7, MODEL, work=StepWork(decode_rows=1)), 0.0)
    found.ended(7, 20.0)
    found.began(make_started_step(7, MODEL, work=StepWork(decode_rows=1)), 20.0)
    assert found.find(20.0 + 20 * STALL_FACTOR) is None
    assert found.find(20.0 + 20 * STALL_FACTOR + 1) is not None


def test_every_iteration_and_every_chunk_is_a_sign_of_life() -> None:
    found = stalls(FAST)
    found.began(make_started_step(7, MODEL, work=StepWork(decode_rows=1)), 0.0)
    found.began(make_started_activation(8, MODEL, n_bytes=10**9), 0.0)
    for at_s in (20.0, 40.0, 60.0):
        found.stepped(at_s)
        found.advanced(8, at_s)
        assert found.find(at_s) is None
    found.ended(7, 61.0)
    assert "activate of m on the channel copy_in" in str(found.find(10_000.0))
    found.ended(8, 10_000.0)
    assert found.find(1e9) is None


def test_a_fetch_is_somebody_elses_concern() -> None:
    found = stalls()
    found.began(make_started_fetch(7, MODEL, n_bytes=10**9), 0.0)
    assert found.find(1e9) is None


def test_the_engine_beats_and_reports_the_step_that_never_ends() -> None:
    body = engine()
    asked = request("r", A, body.clock.now_s())
    body.device.start = _unless_a_step(body.device.start)  # type: ignore[method-assign]
    body.submit_at(asked)
    body.clock.run()
    body.engine.beat()
    assert body.said[-1] == Alive()
    body.clock.call_at(body.clock.now_s() + 3600.0, body.engine.beat)
    body.clock.run()
    (broken,) = [message for message in body.said if isinstance(message, Broken)]
    assert "the device hangs: a step of a" in broken.detail
    assert body.engine.stopped


def _unless_a_step(start):  # type: ignore[no-untyped-def]
    return lambda started: None if isinstance(started.operation, Step) else start(started)


def test_before_a_resize_it_is_said_how_long_that_may_take() -> None:
    body = engine()
    body.send(Resize(12 * 10**9))
    body.clock.run()
    (alive,) = [m for m in body.said if isinstance(m, Alive)]
    assert alive.silent_s > (12 + 16) * 10  # 28 GB at 100 MB/s


def test_the_loop_beats_while_it_has_nothing_to_do() -> None:
    """A clock that moves whenever it is looked at, so that no time has to pass."""

    class Hasty:
        def __init__(self) -> None:
            self.at_s = 0.0

        def now_s(self) -> float:
            self.at_s += BEAT_S
            return self.at_s

    body = engine()
    said = body.said
    said.clear()
    loop = EngineLoop()
    beats = iter(range(3))

    def beat() -> None:
        said.append(Alive())
        if next(beats, None) is None:
            body.engine.stopped = True

    body.engine.beat = beat  # type: ignore[method-assign]
    loop.run(body.engine, Hasty())
    assert said.count(Alive()) == 4


@pytest.mark.parametrize("n_output", [3, 40])
def test_a_healthy_run_is_never_suspected(n_output: int) -> None:
    body = engine(n_output={"r": n_output})
    at_s = body.clock.now_s()
    for i in range(2000):
        body.clock.call_at(at_s + i * 0.1, body.engine.beat)
    body.submit_at(request("r", A, at_s + 1.0, n_output))
    body.clock.run()
    assert not [m for m in body.said if isinstance(m, Broken)]
    assert [m for m in body.said if not isinstance(m, Submit | Alive)]
