"""The front, put together: what every dialect calls, and the parts that answer.

    calls         a question, its stream, and how it ends early
    admission     a question becomes what a node is sent        registration     which models are served
    node_side   live requests, and the node that serves them  administration   load, unload, pin
    readiness     whether requests are accepted                   device_changes   add, drain, remove, resize
    pool_devices  which devices there are, and what fits them     pool_status      what operators see

Everything runs on one event loop; only decoders, the store and the start of a node are opened in
threads.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager

from tokenmux.core.errors import ConfigError, TokenmuxError, Unavailable
from tokenmux.core.facts import InstanceId, ModelFacts
from tokenmux.messages.setups import DeviceSetup
from tokenmux.server.front.administration import Administration
from tokenmux.server.front.admission import Admission
from tokenmux.server.front.api_keys import ApiKeys, Key
from tokenmux.server.front.call import Call
from tokenmux.server.front.calls import Calls
from tokenmux.server.front.changes import Changes
from tokenmux.server.front.device_changes import DeviceChanges
from tokenmux.server.front.device_source import DeviceSource, WantedDevice
from tokenmux.server.front.embeddings import EmbedAsk, Embedded, Embeddings
from tokenmux.server.front.fitting import Capacity
from tokenmux.server.front.generation import AboutModel, Ask, Prompt
from tokenmux.server.front.grammar_reader import GrammarReader
from tokenmux.server.front.limits import Limits
from tokenmux.server.front.long_operations import LongOperations, OperationView
from tokenmux.server.front.model_store import ModelStore
from tokenmux.server.front.model_text import PromptEncoder
from tokenmux.server.front.names import check_name_length
from tokenmux.server.front.node_side import NodeSide
from tokenmux.server.front.node_totals import NodeTotals
from tokenmux.server.front.pool_devices import PoolDevices
from tokenmux.server.front.pool_status import PoolSnapshot, StatusBoard
from tokenmux.server.front.queue_pace import QueuePace
from tokenmux.server.front.readiness import STOPPED, Readiness
from tokenmux.server.front.registration import Registration
from tokenmux.server.front.request_counters import RequestCounters
from tokenmux.server.front.request_rules import Defaults, check_seconds
from tokenmux.server.front.served_models import ServedModels
from tokenmux.server.front.server_totals import ServerTotals, server_totals
from tokenmux.server.front.shown_models import ShownModel, ShownModels
from tokenmux.server.front.tenants import QueuePlaces, Weights
from tokenmux.server.front.trace_document import TraceDocument, trace_document
from tokenmux.server.front.traffic import TrafficRecorder
from tokenmux.server.front.undertakings import Undertakings
from tokenmux.server.nodes.node_protocol import NodeFactory
from tokenmux.workload.trace import Trace

DECODER_THREADS = 2


class Front:
    """Implements `tokenmux.server.front.service.FrontService`. `start` it, serve, then `close` it."""

    def __init__(
        self,
        factory: NodeFactory,
        store: ModelStore,
        capacity: Capacity,
        devices: Sequence[DeviceSetup],
        source: DeviceSource,
        *,
        encoder: PromptEncoder,
        grammars: GrammarReader,
        keys: ApiKeys | None = None,
        pinned: Collection[str] = (),
        limits: Limits | None = None,
        defaults: Defaults | None = None,
        weights: Weights | None = None,
        recorder: TrafficRecorder | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw_seed: Callable[[], int] = lambda: secrets.randbits(64),
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """`devices` are those to start with; `source` gives those that operators add.
        `pinned` names the models to pin from the start; `encoder` and `grammars` are closed with the front.
        The node's times must be on the same `clock`: CLOCK_MONOTONIC is the same for all processes of one
        machine."""
        limits, weights = limits or Limits(), weights or Weights()
        self.keys = keys or ApiKeys()
        self.changes = Changes()
        self._pinned = frozenset(pinned)
        self._recorder = recorder
        self._encoder = encoder
        self._grammars = grammars
        self._clock = clock
        self._threads = ThreadPoolExecutor(DECODER_THREADS, thread_name_prefix="decoder")
        self.models = ServedModels(self._threads)
        self.devices = PoolDevices(devices, capacity)
        self._counters = RequestCounters()
        self._totals = NodeTotals({*weights.tenants, *self.keys.names})
        self._places = QueuePlaces(limits.max_requests, weights, clock)
        pace = QueuePace(clock)
        self.node = NodeSide(
            factory,
            self.models,
            self.devices,
            self._places,
            self.changes,
            limits,
            pace,
            recorder=recorder,
            counters=self._counters,
            totals=self._totals,
            on_given_up=self._give_up,
            clock=clock,
            sleep=sleep,
        )
        self._readiness = Readiness(self.node.outage, self.node.standstill, self.changes)
        self._admission = Admission(
            self.models,
            encoder,
            grammars,
            self.devices,
            self._places,
            self._readiness,
            pace,
            defaults=defaults or Defaults(),
            weights=weights,
            max_choices=limits.max_choices,
            clock=clock,
            draw_seed=draw_seed,
        )
        self._calls = Calls(
            self._admission, self.node.requests, self._readiness, self._counters, self.changes, clock
        )
        self._embeddings = Embeddings(self.models, self._admission, self._calls, self._counters, clock)
        self._shown = ShownModels(self.models, self.node)
        self._undertakings = Undertakings()
        self._operations = LongOperations(clock)
        self._registration = Registration(
            store, self.models, self.devices, self.node, self._undertakings, self.changes
        )
        self._administration = Administration(
            self.models, self._shown, self._registration, self.node, self.changes
        )
        self._device_changes = DeviceChanges(
            self.devices,
            source,
            self.models,
            self._registration,
            self.node,
            self._undertakings,
            self.changes,
        )
        self._status = StatusBoard(
            self._shown,
            self.node,
            self.changes,
            n_live=lambda: self.n_live,
            max_requests=limits.max_requests,
            draining=lambda: self._readiness.draining,
        )

    async def start(self) -> None:
        """Start the node and register every model of the store with it.

        Models that are damaged or do not fit are listed as refused. Raises DoesNotFit if none fits, and
        Unavailable if no node stays alive. After this has returned, nodes that break are replaced without
        limit.
        """
        await self._registration.open_store(self._pinned)
        await self.node.start()
        if self._readiness.failed is not None:
            raise self._readiness.failed
        self._readiness.opened()

    async def drain(self) -> None:
        """Refuse new requests from now on, and wait until the clients of the others have everything they
        asked for."""
        self._readiness.drain()
        while self._calls.n_open:
            await self.changes.after(self.changes.version)

    def end_streams(self) -> None:
        """End all live requests, each with the number of tokens it got, and all commands of operators. No
        new ones are accepted."""
        for live in self.node.requests:
            said = (
                f"the server stopped after {live.n_delivered} tokens of request {live.request_id}: "
                "send it again, to another server or to this one later"
            )
            self.node.requests.fail(live, Unavailable(said))
        self._readiness.stopped()
        stopped = Unavailable(STOPPED)
        self._undertakings.stop(stopped)
        self.node.give_up(stopped)

    async def close(self) -> None:
        """End live requests, stop the node, release the threads. Takes at most a few seconds, whatever
        hangs."""
        self.end_streams()
        await self.node.close()
        self._encoder.close()
        self._grammars.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def n_live(self) -> int:
        """Requests that hold a place: being admitted, or not yet ended on the node's side."""
        return len(self.node.requests) + self._places.n_admitting

    # Requests

    def open(self, ask: Ask, caller: Key | None = None) -> AbstractAsyncContextManager[Call]:
        return self._calls.open(ask, caller)

    async def embed(self, ask: EmbedAsk, caller: Key | None = None) -> list[Embedded]:
        return await self._embeddings.embed(ask, caller)

    def cancel(self, request_id: str, caller: Key | None = None, tenant: str = "") -> None:
        self._calls.cancel(request_id, caller, tenant)

    async def tokenize(self, model: str, prompt: Prompt) -> tuple[int, ...]:
        return await self._admission.tokenize(model, prompt)

    async def about_model(self, name: str) -> AboutModel:
        return await self._admission.about(name)

    # Health

    @property
    def ready(self) -> bool:
        return self._readiness.ready

    def model_ready(self, name: str) -> bool:
        served = self.models.find(name)
        return self.ready and served.refusal is None

    def knows_model(self, name: str) -> bool:
        check_name_length(name)
        return name in self.models

    def model_names(self) -> list[str]:
        return [served.name for served in self.models]

    # Operators

    def list_models(self) -> list[ShownModel]:
        return self._shown.all()

    def show_model(self, name: str) -> ShownModel:
        return self._shown.named(name)

    def register(self, name: str, source: str) -> OperationView:
        return self._operations.start(
            name,
            lambda progress, cancellation: self._registration.register(name, source, progress, cancellation),
        )

    def list_operations(self) -> Sequence[OperationView]:
        return self._operations.all()

    def show_operation(self, name: str) -> OperationView:
        return self._operations.get(name)

    def watch_operation(self, name: str) -> AsyncGenerator[OperationView, None]:
        return self._operations.watch(name)

    def cancel_operation(self, name: str) -> None:
        self._operations.cancel(name)

    async def unregister(self, name: str, *, force: bool = False) -> None:
        await self._registration.unregister(name, force=force)

    async def load(self, name: str, *, wait: bool = False) -> ShownModel:
        return self._shown.of(await self._administration.load(name, wait=wait))

    async def unload(self, name: str) -> ShownModel:
        return self._shown.of(await self._administration.unload(name))

    async def pin(self, name: str, *, pinned: bool) -> ShownModel:
        return self._shown.of(await self._administration.pin(name, pinned=pinned))

    async def add_device(self, wanted: WantedDevice) -> InstanceId:
        return await self._device_changes.add(wanted)

    async def drain_device(self, instance: int, *, undo: bool = False) -> None:
        await self._device_changes.drain(InstanceId(instance), undo=undo)

    async def remove_device(self, instance: int) -> None:
        await self._device_changes.remove(InstanceId(instance))

    async def resize(self, arena_bytes: int, instance: int | None = None) -> int:
        return await self._device_changes.resize(arena_bytes, instance)

    def status(self) -> PoolSnapshot:
        return self._status.now()

    def totals(self) -> ServerTotals:
        return server_totals(self.status(), self._totals, self._counters, self.keys)

    def watch_status(self, min_interval_s: float) -> AbstractAsyncContextManager[AsyncIterator[PoolSnapshot]]:
        return self._status.watch(min_interval_s)

    async def trace(self, last_s: float) -> TraceDocument:
        return await trace_document(self.node, last_s)

    # Planning

    def model_facts(self) -> list[ModelFacts]:
        return [served.facts for served in self.models if served.entry is not None]

    def recorded_traffic(self, last_s: float) -> Trace:
        check_seconds("last_s", last_s)
        if self._recorder is None or not self._recorder.window:
            raise ConfigError(
                "this server records no traffic: set `record_traffic.window` above 0 in its pool.yaml"
            )
        return self._recorder.recorded(last_s, self._clock())

    def _give_up(self, error: TokenmuxError) -> None:
        """There will be no node."""
        self._readiness.fail(error)
        self.node.give_up(error)
