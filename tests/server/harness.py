"""The real front and the real server over scripted parts."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import grpc

from tests.server.scripted_models import FakeCatalogue, FakeEntry, LoopGrammars, ThreadTexts, facts
from tests.server.small_devices import SmallDevices, SmallMachine, device_setup
from tokenmux.messages.reports import (
    Report,
)
from tokenmux.messages.setups import DeviceSetup
from tokenmux.server.app import Transport, running
from tokenmux.server.front.api_keys import ApiKeys, Key
from tokenmux.server.front.front import Front
from tokenmux.server.front.limits import Limits
from tokenmux.server.front.request_rules import Defaults
from tokenmux.server.front.tenants import Weights
from tokenmux.server.front.traffic import TrafficRecorder
from tokenmux.server.http_api.http_server import HttpTransport
from tokenmux.testing.scripted_node import (
    ScriptedNodes,
)
from tokenmux.v1 import (
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    planning_pb2_grpc,
    pool_pb2_grpc,
)

Result = TypeVar("Result")

PATIENCE_S = 30.0
"""How long a test waits for what must come: only a failing one waits that long."""


def make_front(
    hub: ScriptedNodes,
    *entries: FakeEntry,
    limits: Limits | None = None,
    weights: Weights | None = None,
    pinned: Sequence[str] = (),
    clock: Callable[[], float] = lambda: 100.0,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    recorder: TrafficRecorder | None = None,
    keys: Sequence[Key] = (),
    devices: Sequence[DeviceSetup] = (),
    machine: SmallMachine | None = None,
) -> tuple[Front, FakeCatalogue]:
    """A front over the hub's nodes that serves these models (`letters` unless given), with a clock that
    stands still."""
    catalogue = FakeCatalogue(*(entries or (FakeEntry(facts("letters")),)))
    front = Front(
        lambda post, *, devices: hub.factory(post, devices=devices),
        catalogue,
        SmallDevices(),
        devices or (device_setup(),),
        machine or SmallMachine(),
        pinned=pinned,
        limits=limits,
        defaults=Defaults(max_tokens=8),
        weights=weights,
        recorder=recorder,
        keys=ApiKeys(keys),
        encoder=ThreadTexts(catalogue.__getitem__),
        grammars=LoopGrammars(),
        clock=clock,
        sleep=sleep,
        draw_seed=lambda: 1234,
    )
    return front, catalogue


@dataclass(frozen=True)
class Served:
    """A server that answers on a port of this machine."""

    hub: ScriptedNodes
    front: Front
    catalogue: FakeCatalogue
    port: int
    channel: grpc.aio.Channel
    http_port: int | None = None
    metrics_port: int | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def inference(self) -> inference_pb2_grpc.InferenceServiceStub:
        return inference_pb2_grpc.InferenceServiceStub(self.channel)

    @property
    def models(self) -> models_pb2_grpc.ModelServiceStub:
        return models_pb2_grpc.ModelServiceStub(self.channel)

    @property
    def operations(self) -> operations_pb2_grpc.OperationServiceStub:
        return operations_pb2_grpc.OperationServiceStub(self.channel)

    async def register(self, name: str, source: str = "") -> operations_pb2.Operation:
        """The last state of the operation."""
        began = await self.models.RegisterModel(models_pb2.RegisterModelRequest(name=name, source=source))
        watch = operations_pb2.WatchOperationRequest(name=began.operation.name)
        *_, last = [told.operation async for told in self.operations.WatchOperation(watch)]
        return last

    @property
    def pool(self) -> pool_pb2_grpc.PoolServiceStub:
        return pool_pb2_grpc.PoolServiceStub(self.channel)

    @property
    def planning(self) -> planning_pb2_grpc.PlanningServiceStub:
        return planning_pb2_grpc.PlanningServiceStub(self.channel)


@asynccontextmanager
async def serving(
    *entries: FakeEntry,
    auto: bool = True,
    limits: Limits | None = None,
    keys: Sequence[Key] = (),
    transport: Transport | None = None,
    http: HttpTransport | None = None,
    metrics: HttpTransport | None = None,
    recorder: TrafficRecorder | None = None,
    devices: Sequence[DeviceSetup] = (),
    machine: SmallMachine | None = None,
    clock: Callable[[], float] = lambda: 100.0,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> AsyncIterator[Served]:
    """The whole server on a free loopback port, and a channel to it."""
    hub = ScriptedNodes(auto=auto)
    front, catalogue = make_front(
        hub,
        *entries,
        limits=limits,
        recorder=recorder,
        keys=keys,
        devices=devices,
        machine=machine,
        clock=clock,
        sleep=sleep,
    )
    async with (
        running(front, transport or Transport(), http, metrics) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield Served(hub, front, catalogue, server.port, channel, server.http_port, server.metrics_port)


class ServerThread:
    """A server on an event loop of its own, so that blocking calls can be made from the test."""

    def __init__(self, server: Callable[[], AbstractAsyncContextManager[Served]]) -> None:
        self._server = server
        self._ready: Future[Served] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            async with self._server() as served:
                self._ready.set_result(served)
                await self._stop.wait()
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            raise

    def do(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run something on the server's loop."""
        return self.begin(coroutine).result(PATIENCE_S)

    def begin(self, coroutine: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run something on the server's loop beside the test."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def post(self, message: Report) -> None:
        """Let the node say something, and wait until the front has heard it."""
        version = self.served.front.changes.version
        self.served.hub.post(message)
        await self.served.front.changes.after(version)

    def __enter__(self) -> Self:
        self._thread.start()
        self.served = self._ready.result(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
