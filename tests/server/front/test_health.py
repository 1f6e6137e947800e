"""Health tells the truth: it says if nothing serves, or nothing moves although requests wait, and asking for
it changes nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from msgspec.structs import replace

from tests.server.front.asking import ask, events_of, tokens, until
from tests.server.harness import make_front, serving
from tests.server.sample_reports import device_status, node_status
from tests.server.virtual_time import VirtualTime, turns
from tokenmux.core.errors import ProcessFailed, Unavailable
from tokenmux.core.facts import InstanceId
from tokenmux.core.phases import DeviceState, PhaseChanged, RequestPhase
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.messages.commands import AskTrace, Command, Pause, Submit
from tokenmux.messages.reports import Alive, DeviceStatus, Finished, NodeStatus, Report
from tokenmux.scheduler.metrics.counters import INSTANCE_TABLE
from tokenmux.server.front.front import Front
from tokenmux.server.front.limits import Limits
from tokenmux.testing.scripted_node import ScriptedNodes
from tokenmux.v1 import inference_pb2, models_pb2, pool_pb2

STILL_S = 20.0
OUTAGE_S = 25.0
SECOND = InstanceId(1)


@asynccontextmanager
async def started(hub: ScriptedNodes, time: VirtualTime, **limits: Any) -> AsyncIterator[Front]:
    chosen = Limits(still_s=STILL_S, outage_s=OUTAGE_S, **limits)
    front, _ = make_front(hub, clock=time.clock, sleep=time.sleep, limits=chosen)
    try:
        await front.start()
        yield front
    finally:
        await front.close()


async def say(hub: ScriptedNodes, *reports: Report) -> None:
    for report in reports:
        hub.post(report)
    await turns()


async def wait_alive(hub: ScriptedNodes, time: VirtualTime, seconds: float) -> None:
    """Time passes, in which the node says once a second that it lives."""
    for _ in range(round(seconds)):
        await say(hub, Alive())
        await time.pass_s(1.0)


# Nothing moves


async def test_nothing_moves_although_a_request_waits() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    async with started(hub, time) as front:
        await wait_alive(hub, time, 2 * STILL_S)
        assert front.ready, "nobody waits"
        async with front.open(ask()):
            request = (await hub.next(Submit)).request.id
            await wait_alive(hub, time, STILL_S - 1)
            assert front.ready
            await wait_alive(hub, time, 2)
            assert not front.ready
            assert not front.model_ready("letters")
            await say(hub, tokens(request, 0, "d"))
            assert front.ready, "at once"
            await wait_alive(hub, time, STILL_S + 1)
            assert not front.ready
        await wait_alive(hub, time, 1)
        assert front.ready, "nobody waits any longer"


async def test_requests_are_taken_meanwhile_and_served_when_it_goes_on() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    async with started(hub, time) as front, front.open(ask()):
        await wait_alive(hub, time, STILL_S + 1)
        assert not front.ready
        hub.auto = True
        assert len(await events_of(front, ask())) > 1
        assert front.ready


def moved(**changes: Any) -> NodeStatus:
    device = device_status("letters")
    counts = list(device.counts)
    for name, value in changes.items():
        counts[INSTANCE_TABLE.names.index(name)] = value
    return node_status("letters", devices=(replace(device, counts=tuple(counts)),))


MOVES: dict[str, list[Report]] = {
    "a token": [tokens(RequestId("r"), 0, "d")],
    "a copy that comes further": [PhaseChanged(RequestId("r"), RequestPhase.LOADING, progress=0.5)],
    "a request that runs": [PhaseChanged(RequestId("r"), RequestPhase.RUNNING)],
    "one that is complete": [Finished(RequestId("r"), FinishReason.LENGTH, 0.0)],
    "a step": [moved(n_steps=77)],
    "a fetch": [moved(fetch_busy_s=77.0)],
    "a copy": [moved(copy_in_busy_s=77.0)],
}
RESTS: dict[str, list[Report]] = {
    "life": [Alive()],
    "the same status": [node_status("letters")],
    "a longer queue": [replace(node_status("letters"), at_s=9.0, work_s=99.0, model_work_s=99.0)],
    "another place in the queue": [PhaseChanged(RequestId("r"), RequestPhase.QUEUED, position=3)],
    "a copy that begins": [PhaseChanged(RequestId("r"), RequestPhase.LOADING)],
    "one that left": [Finished(RequestId("r"), FinishReason.CANCELLED, 0.0)],
}


@pytest.mark.parametrize(("said", "moves"), [*((k, True) for k in MOVES), *((k, False) for k in RESTS)])
async def test_what_counts_as_moving(said: str, moves: bool) -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    async with started(hub, time) as front, front.open(ask()):
        await say(hub, node_status("letters"))
        for _ in range(3):
            await wait_alive(hub, time, STILL_S / 2)
            await say(hub, *{**MOVES, **RESTS}[said])
            await say(hub, node_status("letters") if moves else Alive())
        assert front.ready == moves


async def test_a_client_that_does_not_read_waits_for_nothing() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    async with started(hub, time, buffer_tokens=1, unread_s=1000.0) as front, front.open(ask()):
        request = (await hub.next(Submit)).request.id
        await say(hub, tokens(request, 0, "def"))
        assert await hub.next(Pause) == Pause(request)
        await wait_alive(hub, time, 2 * STILL_S)
        assert front.ready


async def test_time_in_which_the_server_itself_stood_still_does_not_count() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    async with started(hub, time) as front, front.open(ask()):
        time.now_s += 10 * STILL_S
        await wait_alive(hub, time, 2)
        assert front.ready


# No device serves


def states(*states: DeviceState) -> NodeStatus:
    devices: list[DeviceStatus] = []
    for n, state in enumerate(states):
        fault = "" if state is DeviceState.SERVING else f"fault {n}"
        devices.append(device_status(instance=InstanceId(n), state=state, fault=fault))
    return node_status("letters", devices=tuple(devices))


async def test_a_device_that_is_out_is_no_outage_as_long_as_another_serves() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    async with started(hub, time) as front:
        await say(hub, states(DeviceState.OUT, DeviceState.SERVING, DeviceState.STARTING))
        await wait_alive(hub, time, 100)
        assert front.ready


async def test_a_pool_of_which_no_device_serves_is_as_good_as_none() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    async with started(hub, time) as front, AsyncExitStack() as stack:
        await say(hub, states(DeviceState.SERVING, DeviceState.OUT))
        before = await stack.enter_async_context(front.open(ask()))
        await say(hub, states(DeviceState.STARTING, DeviceState.OUT))
        await wait_alive(hub, time, 9)
        assert front.ready, "that happens, and is over in a moment"
        await wait_alive(hub, time, 2)
        assert not front.ready
        during = await stack.enter_async_context(front.open(ask()))
        await wait_alive(hub, time, OUTAGE_S)
        for stream in (before, during):
            with pytest.raises(Unavailable, match=r"device 0 is starting \(fault 0\); device 1 is out"):
                await anext(e async for e in stream if not isinstance(e, PhaseChanged) and False)
        with pytest.raises(Unavailable, match="no device serves"):
            await events_of(front, ask())
        await say(hub, states(DeviceState.SERVING, DeviceState.OUT))
        await time.pass_s(2.0)
        assert front.ready
        hub.auto = True
        assert len(await events_of(front, ask())) > 1


async def test_a_device_that_comes_back_in_time_was_no_outage() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    async with started(hub, time) as front, front.open(ask()) as stream:
        for _ in range(2):
            await say(hub, states(DeviceState.STARTING))
            await wait_alive(hub, time, 9)
            await say(hub, states(DeviceState.SERVING))
            assert front.ready
        assert not stream.closed


async def test_a_server_starts_when_its_first_device_serves() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    make = hub.factory

    def starting(*arguments: Any, **options: Any) -> Any:
        node = make(*arguments, **options)
        node.post(states(DeviceState.STARTING, DeviceState.OUT))
        return node

    hub.factory = starting  # type: ignore[method-assign]
    front, _ = make_front(hub, clock=time.clock, sleep=time.sleep)
    starts = asyncio.ensure_future(front.start())
    await until(lambda: front.node.running)
    await wait_alive(hub, time, 60)
    assert not starts.done()
    assert not front.ready
    await say(hub, states(DeviceState.SERVING, DeviceState.OUT))
    await starts
    assert front.ready
    await front.close()


async def test_a_server_none_of_whose_devices_can_be_started_says_why() -> None:
    hub = ScriptedNodes()
    make = hub.factory

    def dead(*arguments: Any, **options: Any) -> Any:
        node = make(*arguments, **options)
        node.post(states(DeviceState.OUT, DeviceState.OUT))
        return node

    hub.factory = dead  # type: ignore[method-assign]
    front, _ = make_front(hub)
    with pytest.raises(ProcessFailed, match=r"device 0 is out \(fault 0\); device 1 is out \(fault 1\)"):
        await front.start()
    await front.close()


# Monitoring


async def test_monitoring_sends_the_node_nothing() -> None:
    """It can neither load, nor wake, nor keep a model."""
    async with serving() as served:
        version = served.front.changes.version
        served.hub.post(node_status("letters"))
        await served.front.changes.after(version)
        served.hub.unread()
        health = health_pb2_grpc.HealthStub(served.channel)
        for name in ("", "models/letters"):
            await health.Check(health_pb2.HealthCheckRequest(service=name))
            watch = health.Watch(health_pb2.HealthCheckRequest(service=name))
            await watch.read()
            watch.cancel()
        await health.List(health_pb2.HealthListRequest())
        await served.pool.GetStatus(pool_pb2.GetStatusRequest())
        call = served.pool.WatchStatus(pool_pb2.WatchStatusRequest())
        await call.read()
        call.cancel()
        await served.models.ListModels(models_pb2.ListModelsRequest())
        await served.models.GetModel(models_pb2.GetModelRequest(name="letters"))
        await served.inference.ServerReady(inference_pb2.ServerReadyRequest())
        await served.inference.ModelReady(inference_pb2.ModelReadyRequest(model="letters"))
        await served.inference.ModelMetadata(inference_pb2.ModelMetadataRequest(model="letters"))
        assert served.hub.unread() == []
        await served.pool.GetTrace(pool_pb2.GetTraceRequest())
        kinds: list[type[Command]] = [type(command) for command in served.hub.unread()]
        assert kinds == [AskTrace]
