"""Devices that operators add, drain, remove and resize: what the server lets in before, meanwhile and
afterwards, what it refuses before anything has changed, and with which devices a node starts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest

from tests.server.harness import PATIENCE_S, Served, serving
from tests.server.sample_reports import device_status, node_status
from tests.server.scripted_models import FakeEntry, facts
from tests.server.small_devices import device_setup
from tokenmux.client import AsyncClient, Client, WrongArgument
from tokenmux.core.errors import ErrorCode
from tokenmux.core.facts import FIRST_INSTANCE, InstanceId, ModelId
from tokenmux.core.phases import DeviceState
from tokenmux.messages.commands import AddDevice, DrainDevice, Pin, Register, RemoveDevice, Resize, Submit
from tokenmux.messages.reports import Acknowledged, Broken
from tokenmux.messages.setups import DeviceSetup
from tokenmux.v1 import inference_pb2, models_pb2, pool_pb2

Code = grpc.StatusCode
SECOND = InstanceId(1)


@pytest.fixture
async def one() -> AsyncIterator[Served]:
    """One device of 10,000 bytes, and a model that does not fit it."""
    async with (
        asyncio.timeout(PATIENCE_S),
        serving(FakeEntry(facts("letters")), FakeEntry(facts("wide", 20_000))) as served,
    ):
        served.hub.unread()
        yield served


@pytest.fixture
async def two() -> AsyncIterator[Served]:
    """A device of 5,000 bytes and one of 30,000, for models of which one fits only the second."""
    async with (
        asyncio.timeout(PATIENCE_S),
        serving(
            FakeEntry(facts("letters")),
            FakeEntry(facts("wide", 20_000)),
            devices=(device_setup(5_000), device_setup(30_000)),
        ) as served,
    ):
        served.hub.unread()
        yield served


def add(served: Served, **fields: Any) -> Awaitable[pool_pb2.AddDeviceResponse]:
    return served.pool.AddDevice(pool_pb2.AddDeviceRequest(**fields))


def drain(served: Served, instance: int, *, undo: bool = False) -> Awaitable[pool_pb2.DrainDeviceResponse]:
    return served.pool.DrainDevice(pool_pb2.DrainDeviceRequest(instance=instance, undo=undo))


def remove(served: Served, instance: int) -> Awaitable[pool_pb2.RemoveDeviceResponse]:
    return served.pool.RemoveDevice(pool_pb2.RemoveDeviceRequest(instance=instance))


def resize(
    served: Served, arena_bytes: int, instance: int | None = None
) -> Awaitable[pool_pb2.ResizeDeviceResponse]:
    return served.pool.ResizeDevice(pool_pb2.ResizeDeviceRequest(arena_bytes=arena_bytes, instance=instance))


def generate(
    served: Served, n_tokens: int, model: str = "letters"
) -> Awaitable[inference_pb2.GenerateResponse]:
    stopping = inference_pb2.Stopping(max_tokens=n_tokens - 2)
    return served.inference.Generate(inference_pb2.GenerateRequest(model=model, text="ab", stopping=stopping))


async def refused(call: Awaitable[object], code: grpc.StatusCode, *parts: str) -> None:
    """The call ends with this code, and its message has these parts."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code
    for part in parts:
        assert part in (caught.value.details() or "")


def present(served: Served) -> dict[int, int]:
    """The arenas of the devices with which the present node started, by number."""
    return {n: setup.facts.arena_bytes for n, setup in served.hub.node.devices.setups.items()}


async def break_node(served: Served) -> None:
    """Break the node, and wait for the next one."""
    n = len(served.hub.nodes)
    served.hub.unread()
    served.hub.post(Broken("killed"))
    # A node that has said nothing yet is no change that is told.
    while len(served.hub.nodes) == n or not served.front.node.running:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


# Adding


async def test_a_device_is_added_and_brings_room(one: Served) -> None:
    await refused(generate(one, 8, "wide"), Code.FAILED_PRECONDITION, "wide needs 20000 bytes")
    assert (await add(one, arena_bytes=25_000)).instance == 1
    assert (await one.hub.next(AddDevice)).device.facts.arena_bytes == 25_000
    assert (await one.hub.next(Register)).facts.id == "wide", "it was refused before"
    await generate(one, 8, "wide")


async def test_a_device_counts_when_it_is_there_and_not_before(one: Served) -> None:
    one.hub.answer_devices = False
    call = add(one, arena_bytes=25_000)
    await one.hub.next(AddDevice)
    await refused(generate(one, 8, "wide"), Code.FAILED_PRECONDITION)
    refusal = Acknowledged(one.hub.node.device_ticket, "no more processes", ErrorCode.NOT_SERVABLE)
    one.hub.post(refusal)
    await refused(call, Code.FAILED_PRECONDITION, "no more processes")
    await refused(generate(one, 8, "wide"), Code.FAILED_PRECONDITION)
    await break_node(one)
    assert present(one) == {0: 10_000}


async def test_what_the_machine_has_not_is_not_added(one: Served) -> None:
    await refused(add(one, arena_bytes=1 << 40), Code.FAILED_PRECONDITION, "this machine has 1 GiB")
    await refused(add(one, gpu="none"), Code.INVALID_ARGUMENT, "no GPU none")
    await refused(add(one, kind=9), Code.INVALID_ARGUMENT, "kind 9", "DEVICE_KIND_CUDA")
    for gpu in ("0", "1"):
        await add(one, gpu=gpu)
    await refused(add(one), Code.FAILED_PRECONDITION, "take one out first")
    assert [type(command) for command in one.hub.unread()].count(AddDevice) == 2


async def test_a_gpu_is_not_added_twice_at_the_same_time(one: Served) -> None:
    one.hub.answer_devices = False
    call = add(one, gpu="0")
    await one.hub.next(AddDevice)
    await refused(add(one, gpu="0"), Code.INVALID_ARGUMENT, "GPU 0 is a device of the pool already")
    one.hub.post(Acknowledged(one.hub.node.device_ticket, instance=SECOND))
    assert (await call).instance == 1


# Draining and removing


async def test_nothing_is_let_in_that_only_a_drained_device_could_serve(two: Served) -> None:
    await generate(two, 60)
    await two.models.UnregisterModel(models_pb2.UnregisterModelRequest(name="wide"))
    await drain(two, 1)
    assert await two.hub.next(DrainDevice) == DrainDevice(SECOND)
    await refused(generate(two, 60), Code.FAILED_PRECONDITION, "60 tokens of letters do not fit")
    await drain(two, 1, undo=True)
    assert await two.hub.next(DrainDevice) == DrainDevice(SECOND, undo=True)
    await generate(two, 60)


async def test_a_drain_can_be_undone_before_it_is_done(two: Served) -> None:
    two.hub.answer_devices = False
    call = drain(two, 0)
    await two.hub.next(DrainDevice)
    ticket = two.hub.node.device_ticket
    undo = drain(two, 0, undo=True)
    assert (await two.hub.next(DrainDevice)).undo
    two.hub.post(Acknowledged(ticket, "it was undone", ErrorCode.ENDED))
    two.hub.post(Acknowledged(two.hub.node.device_ticket))
    await undo
    await refused(call, Code.ABORTED, "undone")
    await refused(drain(two, 0, undo=True), Code.INVALID_ARGUMENT, "device 0 is not drained")


async def test_a_removed_device_is_gone_and_its_number_is_not_used_again(two: Served) -> None:
    await remove(two, 0)
    assert await two.hub.next(RemoveDevice) == RemoveDevice(FIRST_INSTANCE)
    for call in (remove(two, 0), drain(two, 0), resize(two, 20_000, 0)):
        await refused(call, Code.NOT_FOUND, "there is no device 0: the pool has 1")
    await remove_the_highest(two)


async def remove_the_highest(two: Served) -> None:
    assert (await add(two)).instance == 2
    await remove(two, 2)
    await break_node(two)
    assert present(two) == {1: 30_000}
    assert (await add(two)).instance == 3


async def test_the_last_device_stays(two: Served) -> None:
    await two.models.UnregisterModel(models_pb2.UnregisterModelRequest(name="wide"))
    await drain(two, 1)
    two.hub.unread()
    for call in (drain(two, 0), remove(two, 0)):
        await refused(call, Code.FAILED_PRECONDITION, "device 0 is the last one that serves: add another one")
    assert two.hub.unread() == []
    await remove(two, 1)
    await refused(remove(two, 0), Code.FAILED_PRECONDITION, "the last one")


async def test_a_device_that_is_out_takes_nothing_over(two: Served) -> None:
    version = two.front.changes.version
    two.hub.post(node_status(devices=(device_status(state=DeviceState.OUT), device_status(instance=SECOND))))
    await two.front.changes.after(version)
    for call in (drain(two, 1), remove(two, 1)):
        await refused(call, Code.FAILED_PRECONDITION, "device 1 is the last one that serves")
    assert two.hub.unread() == []
    await remove(two, 0)


async def test_a_device_that_is_not_named_is_not_the_first(two: Served) -> None:
    """A field that is not set would read as device 0."""
    for call in (
        two.pool.RemoveDevice(pool_pb2.RemoveDeviceRequest()),
        two.pool.DrainDevice(pool_pb2.DrainDeviceRequest()),
        two.pool.ResizeDevice(pool_pb2.ResizeDeviceRequest(arena_bytes=20_000)),
    ):
        await refused(call, Code.INVALID_ARGUMENT, "which")
    assert two.hub.unread() == []


@pytest.mark.parametrize("how", [drain, remove])
async def test_what_would_leave_a_model_without_room_is_refused(two: Served, how: Any) -> None:
    await refused(how(two, 1), Code.FAILED_PRECONDITION, "wide needs 20000 bytes", "Remedy: add a device")
    await refused(
        resize(two, 5_000, 1), Code.FAILED_PRECONDITION, "wide needs 20000 bytes", "Remedy: ask for"
    )
    assert two.hub.unread() == []
    await add(two, arena_bytes=20_000)
    await how(two, 1)


async def test_what_would_leave_a_request_without_room_is_refused(two: Served) -> None:
    await two.models.UnregisterModel(models_pb2.UnregisterModelRequest(name="wide"))
    two.hub.auto = False
    call = generate(two, 60)
    submit = await two.hub.next(Submit)
    for change in (drain(two, 1), remove(two, 1), resize(two, 8_000, 1)):
        await refused(change, Code.FAILED_PRECONDITION, "60 tokens of letters do not fit")
    assert two.hub.unread() == []
    two.hub.node.run(submit)
    await call
    await drain(two, 1)


async def test_what_would_leave_a_pin_without_room_is_refused(two: Served) -> None:
    """Both models fit the second device together, and the first holds neither beside the other."""
    await two.register("more", "/")
    await resize(two, 1_500, 0)
    for name in ("letters", "more"):
        await two.models.PinModel(models_pb2.PinModelRequest(name=name, pinned=True))
        await two.hub.next(Pin)
    await two.models.UnregisterModel(models_pb2.UnregisterModelRequest(name="wide"))
    two.hub.unread()
    both = (ModelId("letters"), ModelId("more"))
    version = two.front.changes.version
    two.hub.post(node_status(devices=(device_status(), device_status(instance=SECOND, pinned=both))))
    await two.front.changes.after(version)
    for change in (drain(two, 1), remove(two, 1)):
        await refused(change, Code.FAILED_PRECONDITION, "the device has 1500", "unpin")
    assert two.hub.unread() == []
    await two.models.PinModel(models_pb2.PinModelRequest(name="more", pinned=False))
    await two.models.UnregisterModel(models_pb2.UnregisterModelRequest(name="more"))
    await drain(two, 1)


async def test_a_pin_takes_room_only_where_it_is(two: Served) -> None:
    """Until the node has said where, it is taken to be where most room is."""
    await two.models.PinModel(models_pb2.PinModelRequest(name="letters", pinned=True))
    await refused(resize(two, 20_500, 1), Code.FAILED_PRECONDITION, "on none of 2 devices: wide needs")
    homes = (device_status(pinned=(ModelId("letters"),)), device_status(instance=SECOND))
    version = two.front.changes.version
    two.hub.post(node_status(devices=homes))
    await two.front.changes.after(version)
    await resize(two, 20_500, 1)
    await generate(two, 60)


# Changes at the same time, and nodes that break


async def test_a_device_is_changed_by_one_at_a_time(two: Served) -> None:
    two.hub.answer_devices = False
    call = resize(two, 40_000, 1)
    await two.hub.next(Resize)
    for other in (resize(two, 50_000, 1), drain(two, 1), remove(two, 1)):
        await refused(other, Code.FAILED_PRECONDITION, "device 1 is being resized at this moment")
    second = resize(two, 11_000, 0)
    ticket = two.hub.node.device_ticket
    assert await two.hub.next(Resize) == Resize(11_000, FIRST_INSTANCE)
    two.hub.post(Acknowledged(two.hub.node.device_ticket))
    assert (await second).arena_bytes == 11_000
    two.hub.post(Acknowledged(ticket))
    assert (await call).arena_bytes == 40_000


async def test_two_drains_at_once_do_not_leave_the_pool_empty(two: Served) -> None:
    await two.models.UnregisterModel(models_pb2.UnregisterModelRequest(name="wide"))
    two.hub.answer_devices = False
    first = drain(two, 1)
    await two.hub.next(DrainDevice)
    await refused(drain(two, 0), Code.FAILED_PRECONDITION, "the last one")
    two.hub.post(Acknowledged(two.hub.node.device_ticket, "a pin has no room", ErrorCode.DOES_NOT_FIT))
    await refused(first, Code.FAILED_PRECONDITION, "a pin has no room")
    await generate(two, 60)


async def test_a_caller_that_leaves_does_not_stop_it(two: Served) -> None:
    two.hub.answer_devices = False
    call = remove(two, 0)
    await two.hub.next(RemoveDevice)
    call.cancel()  # type: ignore[attr-defined]
    await asyncio.sleep(0.05)
    version = two.front.changes.version
    two.hub.post(Acknowledged(two.hub.node.device_ticket))
    await two.front.changes.after(version)
    assert len(two.front.devices) == 1


async def test_a_node_that_is_replaced_starts_with_the_present_devices(two: Served) -> None:
    assert present(two) == {0: 5_000, 1: 30_000}
    await add(two, arena_bytes=20_000)
    await resize(two, 15_000, 0)
    await drain(two, 1)
    await break_node(two)
    assert present(two) == {0: 15_000, 1: 30_000, 2: 20_000}
    assert await two.hub.next(DrainDevice) == DrainDevice(SECOND)
    assert two.front.devices.drained == (SECOND,)
    await drain(two, 1, undo=True)
    assert two.front.devices.drained == ()


async def test_a_drain_that_the_next_node_refuses_is_over(two: Served) -> None:
    await two.models.UnregisterModel(models_pb2.UnregisterModelRequest(name="wide"))
    await drain(two, 1)
    two.hub.refuses["device"] = "a pin has no room"
    await break_node(two)
    await two.hub.next(DrainDevice)
    await asyncio.sleep(0.05)
    await generate(two, 60)


@pytest.mark.parametrize("change", ["add", "drain", "remove", "resize"])
async def test_a_change_during_which_the_node_breaks_has_not_happened(two: Served, change: str) -> None:
    await two.models.UnregisterModel(models_pb2.UnregisterModelRequest(name="wide"))
    two.hub.answer_devices = False
    calls = {
        "add": lambda: add(two),
        "drain": lambda: drain(two, 1),
        "remove": lambda: remove(two, 1),
        "resize": lambda: resize(two, 40_000, 1),
    }
    call = calls[change]()
    await two.hub.next({"add": AddDevice, "drain": DrainDevice, "remove": RemoveDevice}.get(change, Resize))
    await break_node(two)
    await refused(call, Code.UNAVAILABLE, "try again")
    assert present(two) == {0: 5_000, 1: 30_000}
    assert not any(isinstance(command, DrainDevice) for command in two.hub.unread())
    await generate(two, 60)


# Clients


async def test_the_clients(two: Served) -> None:
    await two.models.UnregisterModel(models_pb2.UnregisterModelRequest(name="wide"))

    def change_blocking() -> list[object]:
        with Client(two.target) as client:
            pool = client.pool
            return [
                pool.add_device("cuda", arena_bytes=500, gpu=3, paged_kv="int8"),
                pool.resize(600, 2),
                pool.drain_device(2),
                pool.drain_device(2, undo=True),
                pool.remove_device(2),
            ]

    assert await asyncio.to_thread(change_blocking) == [2, 600, None, None, None]
    added = (await two.hub.next(AddDevice)).device
    assert added == device_setup(500, "3")
    assert await two.hub.next(Resize) == Resize(600, InstanceId(2))
    async with AsyncClient(two.target) as client:
        assert await client.pool.add_device() == 3
        assert await client.pool.resize(20_000, 3) == 20_000
        await client.pool.drain_device(3)
        await client.pool.drain_device(3, undo=True)
        await client.pool.remove_device(3)
        with pytest.raises(WrongArgument, match="'tpu' is not a kind of device"):
            await client.pool.add_device("tpu")
        with pytest.raises(WrongArgument, match="instance: -1 cannot be sent"):
            await client.pool.remove_device(-1)
    assert isinstance((await two.hub.next(AddDevice)).device, DeviceSetup)
