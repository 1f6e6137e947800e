"""What operators do to devices, and what becomes of it when a device breaks at that moment."""

from dataclasses import replace

import msgspec
import pytest

from tests.node.scenes import GB, SHAPE, A, B, answers, ends, facts_of, node_with, request
from tokenmux.core.errors import ErrorCode
from tokenmux.core.facts import FIRST_INSTANCE, InstanceId
from tokenmux.core.phases import DeviceState
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.core.sampling import LogProbabilities, Sampling
from tokenmux.messages.commands import (
    AddDevice,
    DrainDevice,
    Load,
    Order,
    Pin,
    Register,
    RemoveDevice,
    Resize,
    Submit,
    Ticket,
    Unregister,
)
from tokenmux.messages.completions import CopyCompleted, Drew, ExecutorBroken, StepCompleted
from tokenmux.messages.launches import MapImage, OperationId
from tokenmux.messages.reports import Acknowledged, Broken, Finished, NodeStatus, Tokens
from tokenmux.messages.setups import DeviceSetup
from tokenmux.node.executor_port import ExecutorPort
from tokenmux.processes.restarts import RestartLimits
from tokenmux.scheduler.metrics.counters import INSTANCE_TABLE, MODEL_TABLE
from tokenmux.testing import make_model
from tokenmux.testing.virtual_node import NodeOnVirtualTime, setup_of

SECOND = InstanceId(1)
START_S = 2.0


def states(body: NodeOnVirtualTime) -> dict[int, DeviceState]:
    return {index: device.state for index, device in body.node.devices.items()}


def last_status(body: NodeOnVirtualTime) -> NodeStatus:
    return [m for m in body.said if isinstance(m, NodeStatus)][-1]


def until_step(body: NodeOnVirtualTime, index: int = 0) -> None:
    while body.node.devices[InstanceId(index)].step is None:
        body.clock.run_next()


# ── devices that break ──────────────────────────────────────────────────────────────────────────────────────


def test_requests_go_on_at_another_device_while_the_replacement_starts() -> None:
    body = node_with(16, 16, n_output={"r": 400}, start_s=1000.0)
    start_s = body.clock.now_s()
    body.submit_at(request("r", A, start_s, 400))
    until_step(body)
    body.executor_of(0).kill()
    body.clock.run(until_s=start_s + 900.0)
    assert ends(body) == {"r": FinishReason.LENGTH}
    assert states(body) == {0: DeviceState.STARTING, 1: DeviceState.SERVING}
    assert last_status(body).devices[0].n_deaths == 1
    assert last_status(body).devices[0].fault == "killed"
    body.clock.run()
    assert states(body) == {0: DeviceState.SERVING, 1: DeviceState.SERVING}
    assert last_status(body).devices[0].fault == ""


def test_weights_are_not_read_again_after_a_device_was_lost() -> None:
    body = node_with(16, n_output={"r": 400})
    body.submit_at(request("r", A, body.clock.now_s(), 400))
    until_step(body)
    image = body.node.memory.images["a"]
    body.executor_of(0).kill()
    body.clock.run()
    assert ends(body) == {"r": FinishReason.LENGTH}
    assert body.node.memory.images["a"] is image
    assert image.mapped_by == {0}


@pytest.mark.parametrize("n_devices", [1, 2])
def test_a_fetch_whose_executor_dies_is_begun_again(n_devices: int) -> None:
    body = NodeOnVirtualTime(setup_of(*[facts_of(16)] * n_devices), {RequestId("r"): 40})
    body.send(Register(make_model("a", 10 * GB, kv=SHAPE, max_context=4096, n_parameters=GB), path=""))
    body.submit_at(request("r", A, 0.1, 40))
    body.clock.run(until_s=0.5)
    fetcher = body.node.memory.images["a"].fetcher
    assert fetcher is not None
    body.executor_of(fetcher).kill()
    body.clock.run()
    assert ends(body) == {"r": FinishReason.LENGTH}
    assert body.node.memory.images["a"].fetcher is None
    body.pool.check_integrity()


def test_a_device_that_breaks_again_and_again_is_out_and_tried_later() -> None:
    body = node_with(16, 16, n_output={"r": 40})
    limits = RestartLimits()
    for _ in range(limits.n):
        body.executor_of(0).kill()
        body.clock.run()
    assert states(body)[0] is DeviceState.SERVING
    n_executors = len(body.executors)
    body.executor_of(0).kill()
    body.clock.run(until_s=body.clock.now_s() + limits.first_wait_s / 2)
    assert states(body) == {0: DeviceState.OUT, 1: DeviceState.SERVING}
    assert len(body.executors) == n_executors
    body.submit_at(request("r", A, body.clock.now_s(), 40))
    body.clock.run()
    assert states(body)[0] is DeviceState.SERVING
    assert ends(body) == {"r": FinishReason.LENGTH}


def test_a_device_that_says_that_it_is_broken_is_replaced() -> None:
    body = node_with(16, n_output={"r": 40})
    body.submit_at(request("r", A, body.clock.now_s(), 40))
    until_step(body)
    body.executor_of(0).say(ExecutorBroken("the bus is gone"))
    body.clock.run()
    assert ends(body) == {"r": FinishReason.LENGTH}
    assert body.node.devices[FIRST_INSTANCE].n_deaths == 1
    assert not [m for m in body.said if isinstance(m, Broken)]


@pytest.mark.parametrize(
    "stray",
    [
        Drew(OperationId(10**6), 1.0, (1,)),
        Drew(OperationId(-1), 1.0, (1, 2, 3)),
        StepCompleted(OperationId(10**6), (1.0,), (1,)),
        StepCompleted(OperationId(-1), (), (1,)),
        StepCompleted(OperationId(-1), (1.0,) * 50, (1,)),
        StepCompleted(OperationId(-1), (1.0,), (1, 2, 3)),
        StepCompleted(OperationId(-1), (1.0,), (1,), stopped=(5,)),
        StepCompleted(OperationId(-1), (1.0,), (1,), told=((5, ()),)),
        StepCompleted(OperationId(-1), (1.0,), (1,), told=((0, (LogProbabilities(0.0),) * 10_000),)),
        CopyCompleted(OperationId(10**6), 1.0),
    ],
)
def test_an_executor_that_reports_what_cannot_be_ends_alone(
    stray: Drew | StepCompleted | CopyCompleted,
) -> None:
    """-1 stands for the step in flight."""
    body = node_with(16, 16, n_output={"r": 40})
    body.submit_at(request("r", A, body.clock.now_s(), 40))
    until_step(body)
    step = body.node.devices[FIRST_INSTANCE].step
    assert step is not None
    if stray.operation == -1:
        stray = msgspec.structs.replace(stray, operation=OperationId(step.started.id))
    body.executor_of(0).say(stray)
    assert body.executor_of(0).is_dead
    body.clock.run()
    assert ends(body) == {"r": FinishReason.LENGTH}
    assert sum(isinstance(m, Tokens) for m in body.said) == 40
    body.pool.check_integrity()


# ── devices that are resized ────────────────────────────────────────────────────────────────────────────────


def test_a_resize_whose_device_breaks_is_answered_and_the_device_keeps_its_size() -> None:
    body = node_with(16, 16, n_output={"r": 400}, start_s=START_S)
    body.submit_at(request("r", A, body.clock.now_s(), 400))
    until_step(body)
    ticket = body.send(Resize(30 * GB))
    assert ticket not in [m.ticket for m in body.said if isinstance(m, Acknowledged)], "a step is in flight"
    body.executor_of(0).kill()
    body.clock.run()
    (answer,) = [m for m in body.said if isinstance(m, Acknowledged) and m.ticket == ticket]
    assert answer.code is ErrorCode.UNAVAILABLE
    assert "device 0 broke while it was being resized" in answer.error
    assert body.instance.device.arena_bytes == body.node.devices[FIRST_INSTANCE].setup.facts.arena_bytes
    assert body.instance.device.arena_bytes == 16 * GB
    assert ends(body) == {"r": FinishReason.LENGTH}
    assert body.send(Resize(30 * GB))
    body.clock.run()
    assert answers(body)[-1] == ""
    assert body.instance.device.arena_bytes == 30 * GB


def test_the_next_executor_starts_with_the_size_that_the_last_one_was_given() -> None:
    body = node_with()
    body.send(Resize(30 * GB))
    body.clock.run()
    body.executor_of(0).kill()
    body.clock.run()
    assert body.node.devices[FIRST_INSTANCE].setup.facts.arena_bytes == 30 * GB
    assert body.instance.device.arena_bytes == 30 * GB


def test_a_device_that_starts_is_not_resized() -> None:
    body = node_with(16, 16, start_s=START_S)
    body.executor_of(1).kill()
    body.clock.run(until_s=body.clock.now_s() + 0.1)
    body.send(Resize(30 * GB, SECOND))
    assert "device 1 is starting: try again when it serves" in answers(body)[-1]


# ── devices that come and go ────────────────────────────────────────────────────────────────────────────────


def test_an_added_device_serves_once_its_executor_is_ready_and_has_the_next_number() -> None:
    body = node_with(16, start_s=START_S)
    ticket = body.send(AddDevice(DeviceSetup(facts_of(16))))
    assert states(body)[1] is DeviceState.STARTING
    assert ticket not in [m.ticket for m in body.said if isinstance(m, Acknowledged)]
    body.clock.run()
    answer = [m for m in body.said if isinstance(m, Acknowledged)][-1]
    assert (answer.ticket, answer.error, answer.instance) == (ticket, "", 1)
    assert states(body) == {0: DeviceState.SERVING, 1: DeviceState.SERVING}
    body.send(RemoveDevice(SECOND))
    body.clock.run()
    body.send(AddDevice(DeviceSetup(facts_of(16))))
    body.clock.run()
    assert [m for m in body.said if isinstance(m, Acknowledged)][-1].instance == 2


def test_a_device_whose_first_executor_breaks_is_not_added() -> None:
    body = node_with(16, start_s=START_S)
    body.send(AddDevice(DeviceSetup(facts_of(16))))
    body.executor_of(1).say(ExecutorBroken("there is no such device"))
    body.clock.run()
    answer = [m for m in body.said if isinstance(m, Acknowledged)][-1]
    assert (answer.code, answer.error) == (ErrorCode.UNAVAILABLE, "there is no such device")
    assert states(body) == {0: DeviceState.SERVING}
    assert len(body.executors) == 2


def test_a_device_for_which_there_is_no_process_is_not_added(monkeypatch: pytest.MonkeyPatch) -> None:
    body = node_with(16)

    def refuse(*_: object, **__: object) -> ExecutorPort:
        raise OSError("too many open files")

    monkeypatch.setattr(NodeOnVirtualTime, "__call__", refuse)
    body.send(AddDevice(DeviceSetup(facts_of(16))))
    assert answers(body)[-1] == "its executor cannot be started: too many open files"
    assert states(body) == {0: DeviceState.SERVING}


def test_a_device_that_starts_takes_what_fits_nowhere_else_and_stays_if_it_breaks_then() -> None:
    body = node_with(16, n_output={"r": 40}, start_s=START_S)
    large = make_model("large", 30 * GB, kv=SHAPE, max_context=4096, n_parameters=GB)
    body.send(Register(large, path=""))
    body.send(AddDevice(DeviceSetup(facts_of(40))))
    body.submit_at(request("r", large.id, body.clock.now_s(), 40))
    body.clock.run(until_s=body.clock.now_s())
    body.executor_of(1).kill()
    body.clock.run()
    assert ends(body) == {"r": FinishReason.LENGTH}
    assert states(body) == {0: DeviceState.SERVING, 1: DeviceState.SERVING}


@pytest.mark.parametrize("removing", [False, True])
def test_a_device_that_starts_can_be_drained_and_removed(removing: bool) -> None:
    body = node_with(16, 16, start_s=START_S)
    body.executor_of(1).kill()
    body.clock.run(until_s=body.clock.now_s() + 0.1)
    assert states(body)[1] is DeviceState.STARTING
    body.send(RemoveDevice(SECOND) if removing else DrainDevice(SECOND))
    body.clock.run()
    assert answers(body)[-1] == ""
    expected = {0: DeviceState.SERVING} | ({} if removing else {1: DeviceState.DRAINED})
    assert states(body) == expected
    if not removing:
        body.send(DrainDevice(SECOND, undo=True))
        assert states(body)[1] is DeviceState.SERVING


def test_a_drained_device_that_breaks_stays_drained_and_can_serve_again() -> None:
    body = node_with(16, 16, n_output={"r": 40}, start_s=START_S)
    body.send(DrainDevice(SECOND))
    body.clock.run()
    body.executor_of(1).kill()
    body.clock.run()
    assert states(body)[1] is DeviceState.DRAINED
    body.executor_of(1).kill()
    body.clock.run(until_s=body.clock.now_s() + 0.1)
    body.send(DrainDevice(SECOND, undo=True))
    assert states(body)[1] is DeviceState.STARTING
    body.clock.run()
    assert states(body)[1] is DeviceState.SERVING


def test_a_device_that_rests_is_out_also_if_it_was_drained() -> None:
    body = node_with(16, 16)
    body.send(DrainDevice(SECOND))
    for _ in range(RestartLimits().n + 1):
        body.executor_of(1).kill()
        body.clock.run(until_s=body.clock.now_s() + 0.1)
    assert states(body)[1] is DeviceState.DRAINED
    body.send(DrainDevice(SECOND, undo=True))
    assert states(body)[1] is DeviceState.OUT
    body.clock.run()
    assert states(body)[1] is DeviceState.SERVING


def test_an_operator_who_waits_for_a_drain_hears_that_another_one_undid_it() -> None:
    body = node_with(16, 12, n_output={"r": 4000})
    start_s = body.clock.now_s()
    body.submit_at(request("r", A, start_s, 4000))
    until_step(body)
    drained = body.send(DrainDevice(FIRST_INSTANCE))
    body.send(DrainDevice(FIRST_INSTANCE, undo=True))
    body.clock.run()
    (answer,) = [m for m in body.said if isinstance(m, Acknowledged) and m.ticket == drained]
    assert answer.code is ErrorCode.ENDED
    assert states(body)[0] is DeviceState.SERVING
    assert ends(body) == {"r": FinishReason.LENGTH}


def test_the_last_device_and_unknown_ones_are_refused() -> None:
    body = node_with(16, 16)
    for command in (RemoveDevice(SECOND), RemoveDevice(FIRST_INSTANCE), DrainDevice(InstanceId(7))):
        body.send(command)
        body.clock.run()
    assert answers(body)[-3] == ""
    assert "device 0 is the last one that serves" in answers(body)[-2]
    assert answers(body)[-1] == "the pool has no device 7; it has 0"


def test_totals_do_not_fall_when_a_device_is_removed() -> None:
    body = node_with(16, 16, n_output={"r": 40, "s": 40})
    start_s = body.clock.now_s()
    body.submit_at(request("r", A, start_s, 40))
    body.submit_at(request("s", B, start_s, 40))
    body.clock.run()
    before = last_status(body)
    assert {sum(MODEL_TABLE.named(m.counts)["n_tokens"] for m in before.models)} == {80}
    assert before.n_models_used == 2
    assert all(INSTANCE_TABLE.named(device.counts)["n_steps"] for device in before.devices)
    body.send(RemoveDevice(FIRST_INSTANCE))
    body.clock.run()
    after = last_status(body)
    assert len(after.devices) == 1
    assert sum(MODEL_TABLE.named(m.counts)["n_tokens"] for m in after.models) == 80
    assert after.n_models_used == 2


def test_work_is_counted_once_for_each_model_however_many_devices_it_is_on() -> None:
    """Two models at the same time, on two devices: the time counts once, and once for each model."""
    body = node_with(16, 16, n_output={"r": 400, "s": 400})
    start_s = body.clock.now_s()
    body.submit_at(request("r", A, start_s, 400))
    body.submit_at(request("s", B, start_s, 400))
    body.clock.run()
    ends_s = sorted(m.at_s for m in body.said if isinstance(m, Finished))
    status = last_status(body)
    assert status.work_s == pytest.approx(ends_s[1] - start_s)
    assert status.model_work_s == pytest.approx(sum(ends_s) - 2 * start_s)


# ── models on several devices ───────────────────────────────────────────────────────────────────────────────


def test_a_model_is_removed_while_it_steps_on_one_of_several_devices() -> None:
    body = node_with(16, 16, n_output={"r": 400, "s": 40})
    body.submit_at(request("r", A, body.clock.now_s(), 400))
    until_step(body)
    body.send(Unregister(A))
    assert answers(body)[-1] == ""
    body.submit_at(request("s", B, body.clock.now_s(), 40))
    body.clock.run()
    assert ends(body) == {"r": FinishReason.FAILED, "s": FinishReason.LENGTH}
    assert [message.code for message in body.said if isinstance(message, Finished)] == [None, None]
    assert all(A not in instance.models for instance in body.pool.instances)
    body.pool.check_integrity()


def test_a_model_that_is_asked_for_and_removed_in_one_turn_is_in_use() -> None:
    """Both commands are read before anything is decided."""
    body = node_with(16, n_output={"r": 40})
    asked = request("r", A, body.clock.now_s(), 40)
    body.node.receive(Order(Ticket(100), Submit(asked, prompt=(0,) * 50, sampling=Sampling())))
    body.node.receive(Order(Ticket(101), Unregister(A)))
    body.node.pump()
    (answer,) = [m for m in body.said if isinstance(m, Acknowledged) and m.ticket == 101]
    assert answer.code is ErrorCode.IN_USE
    body.clock.run()
    assert ends(body) == {"r": FinishReason.LENGTH}


def test_a_pin_moves_with_its_model_when_its_device_is_drained() -> None:
    body = node_with(26, 26)
    body.send(Pin(A, pinned=True))
    body.send(Load(B))
    body.clock.run()
    (home,) = [d.instance for d in last_status(body).devices if A in d.pinned]
    body.send(RemoveDevice(home))
    body.clock.run()
    assert answers(body)[-1] == ""
    (left,) = last_status(body).devices
    assert left.pinned == (A,)
    assert A in left.resident


# ── nodes that replace others ───────────────────────────────────────────────────────────────────────────────


def test_a_node_that_replaces_another_has_its_devices_and_uses_no_number_again() -> None:
    """Of four devices the front has removed the first and the last, before the node broke."""
    setup = setup_of(facts_of(16), facts_of(20))
    replaced = msgspec.structs.replace(setup, instances=(InstanceId(1), InstanceId(2)), n_numbered=4)
    body = NodeOnVirtualTime(replaced, {RequestId("r"): 40})
    body.send(Register(make_model("a", 10 * GB, kv=SHAPE, max_context=4096, n_parameters=GB), path=""))
    body.submit_at(request("r", A, 1.0, 40))
    body.clock.run()
    assert ends(body) == {"r": FinishReason.LENGTH}
    sizes = [(device.instance, round(device.arena_bytes / GB)) for device in last_status(body).devices]
    assert sizes == [(1, 16), (2, 20)]
    body.send(AddDevice(DeviceSetup(facts_of(16))))
    body.clock.run()
    assert [m for m in body.said if isinstance(m, Acknowledged)][-1].instance == 4
    body.pool.check_integrity()


@pytest.mark.parametrize("slab_bytes", [32 << 20, 128 << 20])
def test_a_device_with_other_slabs_is_added(slab_bytes: int) -> None:
    body = node_with(16, n_output={"r": 400})
    body.send(AddDevice(DeviceSetup(replace(facts_of(40), slab_bytes=slab_bytes))))
    body.clock.run()
    assert answers(body)[-1] == ""
    body.submit_at(request("r", A, body.clock.now_s(), 400))
    body.clock.run()
    assert ends(body) == {"r": FinishReason.LENGTH}
    body.pool.check_integrity()


# ── images that devices meet ahead ──────────────────────────────────────────────────────────────────────────


def images_given_to(body: NodeOnVirtualTime, index: int) -> list[MapImage]:
    return [one for one in body.executor_of(index).log if isinstance(one, MapImage)]


def test_an_idle_device_is_given_the_images_that_others_have_read_one_a_second() -> None:
    body = node_with(16, 16, n_output={"a": 9000, "b": 2})
    start_s = body.clock.now_s()
    body.submit_at(request("a", A, start_s, 9000))
    until_step(body)
    busy = body.node.devices[FIRST_INSTANCE].instance
    body.submit_at(request("b", B, body.clock.now_s(), 2))
    while not ends(body):
        body.clock.run_next()
    assert len(images_given_to(body, 0)) == len(images_given_to(body, 1)) == 1
    body.beat()
    assert not busy.is_idle
    assert len(images_given_to(body, 0)) == 1
    assert [image.filled for image in images_given_to(body, 1)] == [False, True]
    body.beat()
    assert len(images_given_to(body, 1)) == 2  # it has all
    body.clock.run()
    body.beat()
    assert [image.filled for image in images_given_to(body, 0)] == [False, True]
