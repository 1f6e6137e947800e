"""Resizing the pool: what the server lets in before, meanwhile and afterwards, and what a node starts
with."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.server.harness import Served, serving
from tests.server.scripted_models import FakeEntry, facts
from tests.server.test_serve import node_of, real_server
from tokenmux.client import AsyncClient, CallFailed, Client, Delta
from tokenmux.core.errors import DoesNotFit, ErrorCode
from tokenmux.core.facts import FIRST_INSTANCE
from tokenmux.messages.commands import Register, Resize
from tokenmux.messages.reports import Acknowledged, Broken
from tokenmux.v1 import inference_pb2, pool_pb2

Code = grpc.StatusCode


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(FakeEntry(facts("letters")), FakeEntry(facts("wide", 20_000))) as served:
        yield served


async def resize(served: Served, arena_bytes: int) -> int:
    return (await served.pool.ResizeDevice(pool_pb2.ResizeDeviceRequest(arena_bytes=arena_bytes))).arena_bytes


async def refused(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code(), caught.value.details() or ""


def generate(served: Served, n_tokens: int, model: str = "letters") -> object:
    return served.inference.Generate(
        inference_pb2.GenerateRequest(
            model=model, text="ab", stopping=inference_pb2.Stopping(max_tokens=n_tokens - 2)
        )
    )


async def test_the_node_is_asked_and_what_is_let_in_changes(served: Served) -> None:
    assert await resize(served, 5_000) == 5_000
    assert await served.hub.next(Resize) == Resize(5_000, FIRST_INSTANCE)
    code, details = await refused(generate(served, 40))
    assert (code, "do not fit the device" in details) == (Code.FAILED_PRECONDITION, True)
    await generate(served, 30)
    assert await resize(served, 10_000) == 10_000
    await generate(served, 40)


async def test_a_model_that_was_too_large_is_served_once_it_fits(served: Served) -> None:
    served.hub.unread()
    code, _ = await refused(generate(served, 8, "wide"))
    assert code is Code.FAILED_PRECONDITION
    await resize(served, 15_000)
    assert isinstance(served.front.models.find("wide").refusal, DoesNotFit)
    await resize(served, 30_000)
    assert (await served.hub.next(Register)).facts.id == "wide"
    await generate(served, 8, "wide")


async def test_meanwhile_both_sizes_count_and_another_resize_is_refused(served: Served) -> None:
    served.hub.answer_devices = False
    for arena_bytes, fitting in ((5_000, 30), (20_000, 60)):
        call = served.pool.ResizeDevice(pool_pb2.ResizeDeviceRequest(arena_bytes=arena_bytes))
        await served.hub.next(Resize)
        await generate(served, fitting)
        assert (await refused(generate(served, fitting + 1)))[0] is not Code.OK
        code, details = await refused(
            served.pool.ResizeDevice(pool_pb2.ResizeDeviceRequest(arena_bytes=7_000))
        )
        assert (code, "try again when that is done" in details) == (Code.FAILED_PRECONDITION, True)
        ticket = served.hub.node.device_ticket
        served.hub.post(Acknowledged(ticket, "there is only so much", ErrorCode.DOES_NOT_FIT))
        assert (await refused(call)) == (Code.FAILED_PRECONDITION, "there is only so much")
        assert served.front.devices.setup(FIRST_INSTANCE).facts.arena_bytes == 10_000


async def test_no_size_is_refused(served: Served) -> None:
    code, details = await refused(resize(served, 0))
    assert (code, "give its new size in bytes" in details) == (Code.INVALID_ARGUMENT, True)


async def test_a_caller_that_leaves_does_not_stop_it(served: Served) -> None:
    served.hub.answer_devices = False
    call = served.pool.ResizeDevice(pool_pb2.ResizeDeviceRequest(arena_bytes=5_000))
    await served.hub.next(Resize)
    call.cancel()
    await asyncio.sleep(0.05)
    version = served.front.changes.version
    served.hub.post(Acknowledged(served.hub.node.device_ticket))
    await served.front.changes.after(version)
    assert served.front.devices.setup(FIRST_INSTANCE).facts.arena_bytes == 5_000


async def test_a_node_that_is_restarted_has_the_size_of_the_last_resize(served: Served) -> None:
    async def broken() -> None:
        n = len(served.hub.nodes)
        served.hub.post(Broken("killed"))
        # A node that has said nothing yet is no change that is told.
        while len(served.hub.nodes) == n or not served.front.node.running:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    await resize(served, 5_000)
    await broken()
    served.hub.answer_devices = False
    call = served.pool.ResizeDevice(pool_pb2.ResizeDeviceRequest(arena_bytes=8_000))
    await served.hub.next(Resize)
    await served.hub.next(Resize)
    await broken()
    assert (await refused(call))[0] is Code.UNAVAILABLE
    assert [node.devices.setups[FIRST_INSTANCE].facts.arena_bytes for node in served.hub.nodes] == [
        10_000,
        5_000,
        5_000,
    ]


async def test_the_clients(served: Served) -> None:
    async with AsyncClient(served.target) as client:
        assert await client.pool.resize(5_000) == 5_000
    with Client(served.target) as blocking:
        assert await asyncio.to_thread(blocking.pool.resize, 9_000) == 9_000


def test_a_real_pool_shrinks_and_grows_under_a_generation_and_stays_so_when_its_node_dies(
    tmp_path: Path,
) -> None:
    mib = 1 << 20
    options = {"max_tokens": 150, "temperature": 1.0, "seed": 5, "ignore_end_tokens": True}
    with real_server(tmp_path) as (process, address), Client(address) as client:
        alone = client.generate("llama", "Once upon a time", **options)  # type: ignore[arg-type]
        tokens: list[int] = []
        sizes = [4 * mib, 12 * mib, 5 * mib]
        resized: list[int] = []
        for event in client.stream("llama", "Once upon a time", **options):  # type: ignore[arg-type]
            if isinstance(event, Delta):
                tokens += event.token_ids
                if len(tokens) >= 10 and sizes:
                    thread = threading.Thread(
                        target=lambda size: resized.append(client.pool.resize(size)), args=(sizes.pop(0),)
                    )
                    thread.start()
                    thread.join()
        assert tuple(tokens) == alone.token_ids
        assert resized == [4 * mib, 12 * mib, 5 * mib]
        assert client.pool.status().instances[0].arena_bytes == 5 * mib
        with pytest.raises(CallFailed, match=r"would leave no room: .* Remedy: ask for more than 512\.0 KiB"):
            client.pool.resize(mib // 2)
        with pytest.raises(CallFailed, match=r"this machine has [0-9.]+ .iB for it; ask for that or less"):
            client.pool.resize(1 << 60)

        os.kill(node_of(process.pid), signal.SIGKILL)
        assert client.generate("llama", "Once upon a time", **options).token_ids == alone.token_ids  # type: ignore[arg-type]
        status = client.pool.status()
        assert (status.n_restarts, status.instances[0].arena_bytes) == (1, 5 * mib)
