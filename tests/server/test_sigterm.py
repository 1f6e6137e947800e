"""SIGTERM: health turns first, live requests complete within the grace period, what is left ends with a code
that says to try again, and a second signal ends the wait."""

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, Self

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.server.front.asking import tokens, until
from tests.server.harness import PATIENCE_S, make_front
from tests.server.sample_reports import node_status
from tests.server.scripted_models import FakeEntry
from tests.server.small_devices import device_setup
from tokenmux.core.phases import Residency
from tokenmux.messages.commands import AskTrace, Load, RemoveDevice, Submit
from tokenmux.server.app import Transport, running, until_signalled
from tokenmux.testing.scripted_node import ScriptedNodes
from tokenmux.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
)

Code = grpc.StatusCode
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Server:
    """A server that stops at a signal, as a real one does, and a channel to it that outlives it."""

    def __init__(self, drain_s: float) -> None:
        self.hub = ScriptedNodes()
        self.front, self.catalogue = make_front(self.hub, devices=(device_setup(), device_setup()))
        self._drain_s = drain_s
        self._running: asyncio.Task[None] | None = None

    async def _run(self, started: "asyncio.Future[int]") -> None:
        async with running(self.front, Transport()) as server:
            waiting = asyncio.create_task(until_signalled(self.front, self._drain_s))
            await asyncio.sleep(0)
            started.set_result(server.port)
            await waiting

    async def __aenter__(self) -> Self:
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self._run(started))
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{await started}")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._running is not None:
            self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self.ended()
        await self.channel.close()

    @property
    def ends(self) -> bool:
        return self._running is not None and self._running.done()

    async def ended(self) -> None:
        assert self._running is not None
        await self._running


def generate(served: Server) -> "grpc.aio.UnaryStreamCall[object, object]":
    return inference_pb2_grpc.InferenceServiceStub(served.channel).GenerateStream(
        inference_pb2.GenerateStreamRequest(
            request={"model": "letters", "text": "ab", "stopping": {"max_tokens": 4}}
        )
    )


async def text_of(call: object) -> str:
    return "".join([event.tokens.text async for event in call])  # type: ignore[attr-defined]


async def last_of(call: Any) -> Any:
    return [told async for told in call][-1]


async def refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_health_turns_first_and_live_requests_complete() -> None:
    async with asyncio.timeout(PATIENCE_S), Server(drain_s=1000.0) as served:
        call = generate(served)
        submit = await served.hub.next(Submit)
        watch = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await watch.read()).status == NOT_SERVING
        code, details = await refusal(text_of(generate(served)))
        assert (code, "try another one, or this one again later" in details) == (Code.UNAVAILABLE, True)
        assert not served.ends
        served.hub.node.run(submit)
        assert await text_of(call) == "cdef"


async def test_what_is_left_after_the_grace_period_is_told_to_try_again() -> None:
    async with asyncio.timeout(PATIENCE_S), Server(drain_s=0.05) as served:
        call = generate(served)
        submit = await served.hub.next(Submit)
        served.hub.post(tokens(submit.request.id, 0, "c"))
        ended = asyncio.create_task(refusal(text_of(call)))
        os.kill(os.getpid(), signal.SIGTERM)
        await served.ended()
        code, details = await ended
    assert (code, "the server stopped after 1 tokens" in details) == (Code.UNAVAILABLE, True)
    assert "send it again" in details
    assert served.hub.node.closed


async def test_a_second_signal_ends_the_wait() -> None:
    async with asyncio.timeout(PATIENCE_S), Server(drain_s=1000.0) as served:
        ended = asyncio.create_task(refusal(text_of(generate(served))))
        await served.hub.next(Submit)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: not served.front.ready)
        assert not served.ends
        os.kill(os.getpid(), signal.SIGINT)
        await served.ended()
        assert (await ended)[0] is Code.UNAVAILABLE


async def test_operators_who_wait_are_told_to_try_again() -> None:
    async with asyncio.timeout(PATIENCE_S), Server(drain_s=0.0) as served:
        converting, release = threading.Event(), threading.Event()
        register = served.catalogue.register_folder

        def slow(*arguments: Any, **options: Any) -> FakeEntry:
            converting.set()
            release.wait(PATIENCE_S)
            return register(*arguments, **options)

        served.catalogue.register_folder = slow  # type: ignore[method-assign]
        served.hub.answer_devices = served.hub.answer_traces = False
        version = served.front.changes.version
        served.hub.post(node_status("letters", residency=Residency.HOST))
        await served.front.changes.after(version)
        load = models_pb2.LoadModelRequest(name="letters", wait=True)
        models = models_pb2_grpc.ModelServiceStub(served.channel)
        pool = pool_pb2_grpc.PoolServiceStub(served.channel)
        removal = pool_pb2.RemoveDeviceRequest(instance=0)
        calls = [asyncio.create_task(refusal(models.LoadModel(load)))]
        await served.hub.next(Load)
        calls.append(asyncio.create_task(refusal(pool.RemoveDevice(removal))))
        await served.hub.next(RemoveDevice)
        calls.append(asyncio.create_task(refusal(pool.GetTrace(pool_pb2.GetTraceRequest()))))
        await served.hub.next(AskTrace)
        registration = models_pb2.RegisterModelRequest(name="more", source="/")
        operation = (await models.RegisterModel(registration)).operation
        watch = operations_pb2.WatchOperationRequest(name=operation.name)
        stub = operations_pb2_grpc.OperationServiceStub(served.channel)
        watching = aiter(stub.WatchOperation(watch))
        await anext(watching)
        told = asyncio.create_task(last_of(watching))
        await asyncio.to_thread(converting.wait, PATIENCE_S)
        os.kill(os.getpid(), signal.SIGTERM)
        await served.ended()
        last = (await told).operation
    release.set()
    assert (last.error.code, last.error.reason) == (Code.UNAVAILABLE.value[0], "UNAVAILABLE")
    for call in calls:
        assert await call == (
            Code.UNAVAILABLE,
            "the server has stopped: try another one, or this one again later",
        )
