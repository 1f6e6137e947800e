"""Which operation hangs, by what is known of it; and the node that ends its executor. All on virtual time."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.node.scenes import A, ends, node_with, request
from tokenmux.core.cost import StepWork
from tokenmux.core.facts import FIRST_INSTANCE, DeviceFacts, KvShape
from tokenmux.core.request import FinishReason
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.messages.completions import CopyProgressed, ExecutorAlive
from tokenmux.messages.launches import Instructions, OperationId, StepLaunch, WeightsLaunch
from tokenmux.messages.reports import Alive, Broken
from tokenmux.node.stalls import STALL_FACTOR, STALL_FLOOR_S, Stalls
from tokenmux.testing import make_model
from tokenmux.testing.started_operations import make_started_activation, make_started_fetch, make_started_step
from tokenmux.testing.virtual_node import HOST, NodeOnVirtualTime, VirtualExecutor

SILENT_S = 10.0

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


def hang(executor: VirtualExecutor, kind: type) -> None:
    """Have launches of this kind never end."""
    send = executor.send

    def send_the_rest(instructions: Instructions, descriptors: Sequence[int] = ()) -> None:
        send(tuple(i for i in instructions if not isinstance(i, kind)), descriptors)

    executor.send = send_the_rest  # type: ignore[method-assign]


def beat_until(body: NodeOnVirtualTime, until_s: float) -> None:
    """Let time pass, with a beat each second."""
    for i in range(int(until_s - body.clock.now_s())):
        body.clock.call_at(body.clock.now_s() + i + 1, body.beat)
    body.clock.run(until_s=until_s)


@pytest.mark.parametrize(("kind", "named"), [(StepLaunch, "a step of a"), (WeightsLaunch, "a activate of a")])
def test_an_executor_whose_launch_never_ends_is_replaced_and_the_request_is_served(
    kind: type, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = node_with(n_output={"r": 40})
    hang(body.executor_of(0), kind)
    start_s = body.clock.now_s()
    body.submit_at(request("r", A, start_s, 40))
    beat_until(body, start_s + 20.0)
    assert body.said[-1] == Alive()
    assert not body.executor_of(0).is_dead
    beat_until(body, start_s + 3600.0)
    assert len(body.executors) == 2
    assert body.executors[0].is_dead
    assert named in caplog.text
    device = body.node.devices[FIRST_INSTANCE]
    assert device.n_deaths == 1
    assert ends(body) == {"r": FinishReason.LENGTH}
    assert not [message for message in body.said if isinstance(message, Broken)]
    body.pool.check_integrity()


def test_an_executor_that_is_stopped_is_replaced_within_the_silence_that_is_allowed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = node_with(n_output={"r": 400})
    start_s = body.clock.now_s()
    body.submit_at(request("r", A, start_s, 400))
    beat_until(body, start_s + 14.0)
    body.executor_of(0).is_stopped = True
    beat_until(body, start_s + 14.0 + SILENT_S)
    assert len(body.executors) == 1
    beat_until(body, start_s + 16.0 + SILENT_S)
    assert len(body.executors) == 2
    assert "has sent nothing for 11 s" in caplog.text
    beat_until(body, start_s + 100.0)
    assert ends(body) == {"r": FinishReason.LENGTH}


def test_an_executor_that_says_how_long_it_will_be_silent_is_left_alone_that_long() -> None:
    body = node_with()
    executor, start_s = body.executor_of(0), body.clock.now_s()
    executor.say(ExecutorAlive(silent_s=100.0))
    executor.is_stopped = True
    beat_until(body, start_s + 100.0)
    assert not executor.is_dead
    executor.is_stopped = False
    executor.say(ExecutorAlive())
    executor.is_stopped = True
    beat_until(body, start_s + 102.0 + SILENT_S)
    assert executor.is_dead


def test_chunks_that_go_on_are_signs_of_life() -> None:
    """A copy that takes an hour, and says so all the time."""
    body = node_with(n_output={"r": 10})
    executor, start_s = body.executor_of(0), body.clock.now_s()
    hang(executor, WeightsLaunch)
    body.submit_at(request("r", A, start_s, 10))
    beat_until(body, start_s + 5.0)
    activation = body.node.devices[FIRST_INSTANCE].load_in_flight()
    assert activation is not None
    for i in range(180):
        progressed = CopyProgressed(OperationId(activation.id), i / 180)
        body.clock.call_at(body.clock.now_s() + 20.0 * i, lambda said=progressed: executor.say(said))
    beat_until(body, start_s + 3500.0)
    assert not executor.is_dead


@pytest.mark.parametrize("n_output", [3, 40])
def test_a_healthy_run_is_never_suspected(n_output: int) -> None:
    body = node_with(n_output={"r": n_output})
    at_s = body.clock.now_s()
    for i in range(2000):
        body.clock.call_at(at_s + i * 0.1, body.beat)
    body.submit_at(request("r", A, at_s + 1.0, n_output))
    body.clock.run()
    assert not [m for m in body.said if isinstance(m, Broken)]
    assert len(body.executors) == 1
    assert ends(body) == {"r": FinishReason.LENGTH}
