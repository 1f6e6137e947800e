"""Scripted parts behind the real front and the real server: a worker that does what a test says, models of
one letter a token."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc

from tokenmux.core.errors import (
    AlreadyExists,
    BadCheckpoint,
    DoesNotFit,
    InvalidRequest,
    NotFound,
    TokenmuxError,
)
from tokenmux.core.facts import Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.core.phases import Residency
from tokenmux.core.progress import Progress
from tokenmux.messages.commands import (
    Command,
)
from tokenmux.messages.reports import (
    ModelStatus,
    Report,
    WorkerStatus,
    WorkerUse,
)
from tokenmux.models.text.encoder import TextFacts
from tokenmux.scheduler.metrics.counter_table import Row, Table
from tokenmux.scheduler.metrics.counters import INSTANCE_TABLE, MODEL_TABLE, SERVICE_TABLE
from tokenmux.scheduler.metrics.histogram import Durations
from tokenmux.server.app import Transport, running
from tokenmux.server.front.api_keys import ApiKeys, Key
from tokenmux.server.front.front import Front
from tokenmux.server.front.generation import Chat, Text
from tokenmux.server.front.limits import Limits
from tokenmux.server.front.request_rules import Defaults
from tokenmux.server.front.tenants import Weights
from tokenmux.server.front.traffic import TrafficRecorder
from tokenmux.testing.scripted_worker import (
    ScriptedWorkers,
)
from tokenmux.v1 import inference_pb2_grpc, models_pb2_grpc, planning_pb2_grpc, pool_pb2_grpc

VOCAB = 256
END = 0
CONTEXT = 64
Message = TypeVar("Message", bound=Command)
Result = TypeVar("Result")

PATIENCE_S = 10.0
"""How long a test waits for what must come: only a failing one waits that long."""


def facts(name: str, n_bytes: int = 1000) -> ModelFacts:
    return ModelFacts(
        id=ModelId(name),
        images=(Image(ImageId(f"{name}-image"), n_bytes),),
        kv=KvShape(n_layers=2, n_kv_heads=1, head_dim=8, dtype_bytes=2, block_size=16),
        max_context=CONTEXT,
        n_parameters=500,
        vocab_size=VOCAB,
    )


class LetterDetokenizer:
    """Cuts at the first stop string and holds back what may become one."""

    def __init__(self, stop_strings: Sequence[str], width: int) -> None:
        self._stops = tuple(stop_strings)
        self._width = width
        self._held = ""
        self.stopped: str | None = None

    def push(self, token_ids: Sequence[int]) -> str:
        if self.stopped is not None:
            return ""
        self._held += "".join(chr(token_id) * self._width for token_id in token_ids)
        found = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if found:
            at, self.stopped = min(found)
            text, self._held = self._held[:at], ""
            return text
        keep = max(
            (n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])),
            default=0,
        )
        split = len(self._held) - keep
        text, self._held = self._held[:split], self._held[split:]
        return text

    def finish(self) -> str:
        text, self._held = self._held, ""
        return text


@dataclass
class LetterTokenizer:
    """One token a letter, `width` letters a token on the way back."""

    has_chat_template: bool = True
    width: int = 1
    stop_token_ids: frozenset[int] = frozenset({END})
    gate: Callable[[], None] = lambda: None
    """Called in the tokenizer's thread."""

    @property
    def facts(self) -> TextFacts:
        template = "letters" if self.has_chat_template else None
        return TextFacts(self.stop_token_ids, 100, template, "", False, {}, "letters")

    def encode(self, text: str) -> list[int]:
        self.gate()
        return [ord(letter) for letter in text]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        if not self.has_chat_template:
            raise InvalidRequest("this model has no chat template; send a prompt as text or token ids")
        return self.encode("".join(f"{message['role'][0]}:{message['content']};" for message in messages))

    def detokenizer(self, stop: Sequence[str], *, prompt: Sequence[int]) -> LetterDetokenizer:
        return LetterDetokenizer(stop, self.width)


class ThreadTexts:
    """Encodes with the tokenizers of fake entries, each prompt in a thread of its own that nothing waits
    for."""

    def __init__(self, entry: Callable[[str], "FakeEntry"]) -> None:
        self._entry = entry

    async def encode(self, model: str, path: Path, facts: TextFacts, prompt: Text | Chat) -> list[int]:
        letters = self._entry(model).letters
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[int]] = loop.create_future()

        def settle(ids: list[int] | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            elif ids is not None:
                answer.set_result(ids)

        def work() -> None:
            ids, failure = None, None
            try:
                if isinstance(prompt, Text):
                    ids = letters.encode(prompt.text)
                else:
                    ids = letters.encode_chat(
                        [{"role": m.role, "content": m.content} for m in prompt.messages]
                    )
            except BaseException as error:  # noqa: BLE001 - raised where it is awaited
                failure = error
            with suppress(RuntimeError):  # the loop may be gone
                loop.call_soon_threadsafe(settle, ids, failure)

        threading.Thread(target=work, daemon=True).start()
        return await answer

    def close(self) -> None:
        pass


@dataclass
class FakeEntry:
    facts: ModelFacts
    path: Path = Path("somewhere")
    letters: LetterTokenizer = field(default_factory=LetterTokenizer)

    def tokenizer(self) -> LetterTokenizer:
        return self.letters


class FakeCatalogue:
    """Any folder or file is a model; one whose name begins with "huge" is too large, with "bad" is
    damaged."""

    def __init__(self, *entries: FakeEntry) -> None:
        self.kept: dict[str, FakeEntry] = {entry.facts.id: entry for entry in entries}
        self.refuses_removal: TokenmuxError | None = None

    def __getitem__(self, name: str) -> FakeEntry:
        return self.kept[name]

    def names(self) -> list[str]:
        return sorted(self.kept)

    def get(self, name: str) -> FakeEntry:
        if name not in self.kept:
            raise NotFound(f"no model named {name} in the catalogue")
        if name.startswith("bad"):
            raise BadCheckpoint(f"{name}: the manifest is damaged")
        return self.kept[name]

    def register_folder(self, name: str, folder: Path, *, progress: Progress) -> FakeEntry:
        if name in self.kept:
            raise AlreadyExists(name)
        entry = FakeEntry(facts(name, n_bytes=10**9 if folder.name.startswith("huge") else 1000))
        self.kept[name] = entry
        return entry

    def register_gguf(self, name: str, file: Path, *, progress: Progress) -> FakeEntry:
        return self.register_folder(name, file, progress=progress)

    def set_aside(self, name: str) -> "FakeAside":
        if self.refuses_removal is not None:
            raise self.refuses_removal
        if name not in self.kept:
            raise NotFound(name)
        return FakeAside(self, self.kept.pop(name))

    def remove(self, name: str) -> None:
        self.set_aside(name).delete()


@dataclass
class FakeAside:
    catalogue: FakeCatalogue
    entry: FakeEntry

    def restore(self) -> None:
        self.catalogue.kept[self.entry.facts.id] = self.entry

    def delete(self) -> None:
        pass


@dataclass(frozen=True)
class SmallDevice:
    """10 000 bytes, unless resized, for a model beside the pinned ones, and room for 60 tokens."""

    arena_bytes: int = 10_000

    def resized(self, arena_bytes: int) -> "SmallDevice":
        return SmallDevice(arena_bytes)

    def check_model(self, model: ModelFacts, pinned: Iterable[ModelFacts]) -> None:
        if model.n_bytes + sum(other.n_bytes for other in pinned if other.id != model.id) > self.arena_bytes:
            raise DoesNotFit(
                f"{model.id} needs {model.n_bytes} bytes, the device has {self.arena_bytes}: raise "
                "device.arena"
            )

    def check_request(self, model: ModelFacts, n_tokens: int, pinned: Iterable[ModelFacts]) -> None:
        self.check_model(model, pinned)
        if n_tokens > 60 * self.arena_bytes // 10_000:
            raise DoesNotFit(f"{n_tokens} tokens of {model.id} do not fit the device: ask for at most 60")


class VirtualTime:
    """A clock with a sleeper: time passes when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        until: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now_s + seconds, until))
        await until

    async def pass_s(self, seconds: float) -> None:
        """Wake whoever is due within this time, each at its time, and let what follows happen."""
        end_s = self.now_s + seconds
        await turns()
        while due := [sleeper for sleeper in self._sleepers if sleeper[0] <= end_s]:
            first = min(due, key=lambda sleeper: sleeper[0])
            self._sleepers.remove(first)
            self.now_s = max(self.now_s, first[0])
            if not first[1].done():
                first[1].set_result(None)
                await turns()
        self.now_s = end_s


async def turns(n: int = 20) -> None:
    """Let the loop come round a few times."""
    for _ in range(n):
        await asyncio.sleep(0)


def make_front(
    hub: ScriptedWorkers,
    *entries: FakeEntry,
    limits: Limits | None = None,
    weights: Weights | None = None,
    pinned: Sequence[str] = (),
    clock: Callable[[], float] = lambda: 100.0,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    recorder: TrafficRecorder | None = None,
    keys: Sequence[Key] = (),
) -> tuple[Front, FakeCatalogue]:
    """A front over the hub's workers that serves these models (`letters` unless given), with a clock that
    stands still."""
    catalogue = FakeCatalogue(*(entries or (FakeEntry(facts("letters")),)))
    front = Front(
        lambda post, *, arena_bytes: hub.factory(post, arena_bytes=arena_bytes),
        catalogue,
        SmallDevice(),
        pinned=pinned,
        limits=limits,
        defaults=Defaults(max_tokens=8),
        weights=weights,
        recorder=recorder,
        keys=ApiKeys(keys),
        encoder=ThreadTexts(catalogue.__getitem__),
        clock=clock,
        sleep=sleep,
        draw_seed=lambda: 1234,
    )
    return front, catalogue


@dataclass(frozen=True)
class Served:
    """A server that answers on a port of this machine."""

    hub: ScriptedWorkers
    front: Front
    catalogue: FakeCatalogue
    port: int
    channel: grpc.aio.Channel

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def inference(self) -> inference_pb2_grpc.InferenceStub:
        return inference_pb2_grpc.InferenceStub(self.channel)

    @property
    def models(self) -> models_pb2_grpc.ModelsStub:
        return models_pb2_grpc.ModelsStub(self.channel)

    @property
    def pool(self) -> pool_pb2_grpc.PoolStub:
        return pool_pb2_grpc.PoolStub(self.channel)

    @property
    def planning(self) -> planning_pb2_grpc.PlanningStub:
        return planning_pb2_grpc.PlanningStub(self.channel)


@asynccontextmanager
async def serving(
    *entries: FakeEntry,
    auto: bool = True,
    limits: Limits | None = None,
    keys: Sequence[Key] = (),
    transport: Transport | None = None,
    recorder: TrafficRecorder | None = None,
) -> AsyncIterator[Served]:
    """The whole server on a free loopback port, and a channel to it."""
    hub = ScriptedWorkers(auto=auto)
    front, catalogue = make_front(hub, *entries, limits=limits, recorder=recorder, keys=keys)
    async with (
        running(front, transport or Transport()) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield Served(hub, front, catalogue, server.port, channel)


def worker_status(*models: str, residency: Residency = Residency.RESIDENT) -> WorkerStatus:
    """A status in which every number is another, so that a test sees which went where."""
    return WorkerStatus(
        at_s=1.5,
        device="virtual GPU",
        arena_bytes=10_000,
        weight_bytes=2_000,
        kv_bytes=300,
        host_cache_bytes=40_000,
        host_cache_used_bytes=5_000,
        host_kv_bytes=6_000,
        host_kv_used_bytes=700,
        n_models_used=5,
        counts=INSTANCE_COUNTS,
        running_model=ModelId(models[0]) if models else None,
        models=tuple(
            ModelStatus(
                model=ModelId(name),
                residency=residency,
                pinned=False,
                n_queued=1,
                n_running=2,
                n_paged_out=3,
                counts=MODEL_COUNTS,
            )
            for name in models
        ),
    )


def row_of(table: Table, **values: Any) -> Row:
    """A row of a table, by the names of its counters; every one has to be named."""
    assert values.keys() == set(table.names)
    return tuple(values[name] for name in table.names)


INSTANCE_COUNTS = row_of(
    INSTANCE_TABLE,
    compute_busy_s=8.0,
    copy_in_busy_s=9.0,
    copy_out_busy_s=10.0,
    fetch_busy_s=11.0,
    n_steps=12,
    n_discards=13,
    work_s=10.0,
    model_work_s=35.0,
)
MODEL_COUNTS = row_of(
    MODEL_TABLE,
    n_swaps=4,
    swap_bytes=5,
    swap_s=6.0,
    swap_exposed_s=7.0,
    n_tokens=8,
    n_tokens_on_time=9,
    n_prompt_tokens=10,
    compute_s=11.0,
    n_swaps_first=51,
    n_swaps_again=52,
    n_swaps_operator=53,
    n_swaps_ahead=54,
)


def service(first: int) -> Row:
    """Every number another, from `first` on."""
    ttft, tpot, gaps = (
        Durations((0,) * i + (first + 20 + i,) + (0,) * (35 - i), 0.5 * i) for i in (12, 13, 14)
    )
    return row_of(
        SERVICE_TABLE,
        n_requests=first,
        n_requests_on_time=first + 1,
        n_requests_failed=first + 2,
        n_prompt_tokens=first + 3,
        n_tokens=first + 4,
        n_tokens_on_time=first + 5,
        artifact_attainment=0.5,
        gpu_s=first + 0.5,
        ttft=ttft,
        tpot=tpot,
        gaps=gaps,
    )


def worker_use(*models: str, tenants: Sequence[str] = ("bank",)) -> WorkerUse:
    """A report in which every number is another."""
    uses = tuple((ModelId(name), service(100 * (i + 1))) for i, name in enumerate(models))
    own = tuple((name, service(1000 * (i + 1))) for i, name in enumerate(tenants))
    return WorkerUse(1.5, uses, own)


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
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)

    async def post(self, message: Report) -> None:
        """Let the worker say something, and wait until the front has heard it."""
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
