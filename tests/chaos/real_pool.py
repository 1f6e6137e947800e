"""A real server with three virtual devices and a dozen small models, under everything at once.

Clients stream, greedy and seeded; some read slowly, some leave. A monkey kills and stops executors and the
node, drains, adds, resizes and removes devices, registers and removes models. What is asked, and what the
monkey does and when, is a function of a seed.
"""

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import grpc

from tokenmux.client import AsyncClient, CallFailed, Delta, Finish
from tokenmux.models.catalogue import tiny

MIB = 1 << 20
N_MODELS = 12
N_KINDS = 3
MAX_TOKENS = 32
GUEST = "guest"
ARENAS = (4 * MIB, 6 * MIB, 8 * MIB)
CONFIG = """
listen: 127.0.0.1:0
catalogue: kept
devices:
- {kind: cpu, count: 3, arena: 6MiB, slab: 256KiB, prefill_chunk_tokens: 32}
host: {cache: 24MiB, kv: 8MiB}
node: {silent_s: 4, restart_window_s: 5}
slow_reader: {buffer_tokens: 8}
"""
"""A node that is killed every half minute does not break by itself: with the usual window of a minute its
front would wait longer and longer before it starts the next one."""

CALM_S = 180.0
"""Within this time after the last mischief everything serves and nothing is in flight; executors import
libraries for seconds each, on cores that others use."""

FAULTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)
"""No answer has these codes, whatever the monkey does."""

BAD_LINES = re.compile(r"books|Traceback|IntegrityError|InternalError|not in flight|could not be delivered")
"""What the log of a server never says."""


@dataclass(slots=True)
class Tally:
    """What came of everything, by activity and answer."""

    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    mischief: list[str] = field(default_factory=list)


def write_models(folder: Path) -> list[str]:
    """A dozen checkpoints, of all families in turn, and a `pool.yaml` that serves them. Returns the names."""
    families = list(tiny.FAMILIES)
    names = [f"{families[i % len(families)]}-{i}" for i in range(N_MODELS)]
    for i, name in enumerate(names):
        tiny.create(families[i % len(families)], folder / name, seed=i)
    listed = ", ".join(f"{name}: {name}" for name in names)
    (folder / "pool.yaml").write_text(f"{CONFIG}models: {{{listed}}}\n")
    return names


def prompt(model: str, kind: int) -> list[int]:
    rng = Random(f"{model}-{kind}")
    return [rng.randrange(256) for _ in range((3, 40, 90)[kind])]


def options(kind: int) -> dict[str, object]:
    """Greedy for the first kind of request, sampled for the others."""
    return {
        "max_tokens": MAX_TOKENS,
        "ignore_end_tokens": True,
        "temperature": 0.8 if kind else 0.0,
        "seed": kind,
    }


class Processes:
    """The server's processes, as the system shows them."""

    def __init__(self, front: int) -> None:
        self.front = front

    def node(self) -> int | None:
        return next(iter(self._children(self.front, b"node_main")), None)

    def executors(self) -> list[int]:
        node = self.node()
        return [] if node is None else self._children(node, b"executor_main")

    def all(self) -> list[int]:
        """Every process below the front, and the front."""
        found, left = [], [self.front]
        while left:
            found.append(left.pop())
            left += self._children(found[-1], b"")
        return found

    @staticmethod
    def n_descriptors(pid: int) -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    @staticmethod
    def resident_bytes(pid: int) -> int:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @staticmethod
    def _children(pid: int, word: bytes) -> list[int]:
        children = []
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                for child in (task / "children").read_text().split():
                    with suppress(OSError):
                        if word in Path(f"/proc/{child}/cmdline").read_bytes():
                            children.append(int(child))
        return children


class RealPool:
    """Clients and a monkey against one server; see the module."""

    def __init__(
        self, client: AsyncClient, processes: Processes, folder: Path, models: list[str], seed: int
    ) -> None:
        self.tally = Tally()
        self.processes = processes
        self._client = client
        self._folder = folder
        self._models = models
        self._seed = seed
        self._alone: dict[tuple[str, int], tuple[int, ...]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def learn(self) -> None:
        """Ask every question once, one after the other, of the undisturbed server."""
        for model in self._models:
            for kind in range(N_KINDS):
                done = await self._client.generate(model, prompt(model, kind), **options(kind))  # type: ignore[arg-type]
                self._alone[model, kind] = done.token_ids
                assert len(done.token_ids) == MAX_TOKENS

    async def play(self, seconds: float, n_streams: int) -> None:
        """`n_streams` clients and the monkey, for `seconds`; then wait until all have an answer."""
        until_s = self._loop.time() + seconds
        async with asyncio.TaskGroup() as tasks:
            for number in range(n_streams):
                tasks.create_task(self._stream_until(until_s, Random(f"{self._seed}-{number}")))
            tasks.create_task(self._mischief_until(until_s, Random(self._seed)))
        if self._calls:
            await asyncio.wait(self._calls, timeout=CALM_S)
        late = [task.get_name() for task in self._calls if not task.done()]
        assert not late, f"operators never hear: {late}"

    async def calm(self) -> None:
        """Wait until every device serves, undo what the monkey left, and ask every question again."""
        until_s = self._loop.time() + CALM_S
        while self._loop.time() < until_s:
            with suppress(CallFailed):
                status = await self._client.pool.status(timeout_s=10.0)
                states = [device.state.value for device in status.instances]
                for device in status.instances:
                    if device.state.value in ("draining", "drained"):
                        await self._client.pool.drain_device(device.id, undo=True)
                if states and set(states) == {"serving"} and await self._client.ready(timeout_s=10.0):
                    break
            await asyncio.sleep(0.5)
        else:
            raise AssertionError(f"the devices do not serve again: {states}")
        for model, kind in self._alone:
            done = await self._client.generate(model, prompt(model, kind), **options(kind))  # type: ignore[arg-type]
            if done.token_ids != self._alone[model, kind]:
                self.tally.faults.append(f"{model}, {kind}: {done.token_ids} after the chaos")

    # ── clients ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _stream_until(self, until_s: float, rng: Random) -> None:
        while self._loop.time() < until_s:
            model, kind = rng.choice(self._models), rng.randrange(N_KINDS)
            cut = rng.randrange(MAX_TOKENS) if rng.random() < 0.15 else None
            await self._stream(model, kind, cut, rng.random() < 0.1)
            await asyncio.sleep(rng.random() * 0.5)

    async def _stream(self, model: str, kind: int, cut: int | None, is_slow: bool) -> None:
        """One request, left after `cut` tokens if given. Notes a fault if its tokens are not those it gave
        alone, or if it does not end once."""
        ids: list[int] = []
        n_ends = 0
        status = "LOST"
        try:
            async with asyncio.timeout(CALM_S):
                async with self._client.stream(model, prompt(model, kind), **options(kind)) as events:  # type: ignore[arg-type]
                    async for event in events:
                        match event:
                            case Delta(index=index, token_ids=token_ids):
                                if index != len(ids):
                                    self.tally.faults.append(f"{model}: index {index} after {len(ids)}")
                                ids.extend(token_ids)
                            case Finish():
                                n_ends, status = n_ends + 1, "OK"
                        if cut is not None and len(ids) >= cut and status != "OK":
                            status = "CUT"
                            break
                        if is_slow:
                            await asyncio.sleep(0.05)
        except CallFailed as error:
            status = error.code.name
            if error.code in FAULTS:
                self.tally.faults.append(f"{model}: {error}")
        except TimeoutError:
            status = "NEVER ENDED"
            self.tally.faults.append(f"{model}: a stream never ended")
        self.tally.answers[f"stream {status}"] += 1
        expected = self._alone[model, kind]
        wanted = expected if status == "OK" else expected[: len(ids)]
        if tuple(ids) != wanted or n_ends > 1 or status == "LOST":
            self.tally.faults.append(f"{model}, {kind}: {status}, {n_ends} ends, {ids} instead of {wanted}")

    # ── the monkey ──────────────────────────────────────────────────────────────────────────────────────────

    async def _mischief_until(self, until_s: float, rng: Random) -> None:
        began_s = self._loop.time()
        mischief: tuple[tuple[Callable[[Random], None], int], ...] = (
            (self._kill_executor, 5),
            (self._stop_executor, 2),
            (self._kill_node, 1),
            (self._stop_node, 1),
            (self._drain, 3),
            (self._reopen, 3),
            (self._add, 2),
            (self._remove, 2),
            (self._resize, 3),
            (self._come_and_go, 3),
            (self._load_and_pin, 4),
        )
        calls, weights = zip(*mischief, strict=True)
        while self._loop.time() < until_s:
            await asyncio.sleep(rng.expovariate(1 / 1.5))
            call = rng.choices(calls, weights)[0]
            said = call.__name__.strip("_")
            self.tally.mischief.append(f"{self._loop.time() - began_s:6.1f} {said}")
            call(Random(rng.getrandbits(32)))

    def _signal(self, pid: int | None, number: signal.Signals) -> None:
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _stop(self, pid: int | None, rng: Random) -> None:
        self._signal(pid, signal.SIGSTOP)
        self._loop.call_later(rng.choice((0.3, 2.0, 8.0)), self._signal, pid, signal.SIGCONT)

    def _kill_executor(self, rng: Random) -> None:
        if executors := self.processes.executors():
            self._signal(rng.choice(executors), signal.SIGKILL)

    def _stop_executor(self, rng: Random) -> None:
        if executors := self.processes.executors():
            self._stop(rng.choice(executors), rng)

    def _kill_node(self, rng: Random) -> None:
        self._signal(self.processes.node(), signal.SIGKILL)

    def _stop_node(self, rng: Random) -> None:
        self._stop(self.processes.node(), rng)

    def _operate(self, said: str, call: Callable[[], Awaitable[object]]) -> None:
        async def operate() -> None:
            try:
                await call()
                answer = "OK"
            except CallFailed as error:
                answer = error.code.name
                if error.code in FAULTS:
                    self.tally.faults.append(f"{said}: {error}")
            self.tally.answers[f"{said} {answer}"] += 1

        self._calls.add(asyncio.create_task(operate(), name=said))

    async def _some_device(self, rng: Random) -> int:
        status = await self._client.pool.status(timeout_s=10.0)
        return rng.choice([device.id for device in status.instances] or [0])

    def _drain(self, rng: Random) -> None:
        async def drain() -> None:
            await self._client.pool.drain_device(await self._some_device(rng))

        self._operate("drain", drain)

    def _reopen(self, rng: Random) -> None:
        async def reopen() -> None:
            for device in (await self._client.pool.status(timeout_s=10.0)).instances:
                if device.state.value in ("draining", "drained"):
                    await self._client.pool.drain_device(device.id, undo=True)

        self._operate("reopen", reopen)

    def _add(self, rng: Random) -> None:
        async def add() -> None:
            # More executors than this would only compete for the cores.
            if len((await self._client.pool.status(timeout_s=10.0)).instances) < 4:
                await self._client.pool.add_device(arena_bytes=rng.choice(ARENAS))

        self._operate("add", add)

    def _remove(self, rng: Random) -> None:
        async def remove() -> None:
            if len((await self._client.pool.status(timeout_s=10.0)).instances) > 2:
                await self._client.pool.remove_device(await self._some_device(rng))

        self._operate("remove", remove)

    def _resize(self, rng: Random) -> None:
        async def resize() -> None:
            await self._client.pool.resize(rng.choice(ARENAS), await self._some_device(rng))

        self._operate("resize", resize)

    def _come_and_go(self, rng: Random) -> None:
        async def come_and_go() -> None:
            await self._client.models.register(GUEST, str(self._folder / self._models[0]))
            with suppress(CallFailed):
                await self._client.generate(GUEST, [1, 2, 3], max_tokens=4)
            await self._client.models.unregister(GUEST, force=True)

        self._operate("come and go", come_and_go)

    def _load_and_pin(self, rng: Random) -> None:
        async def load_and_pin() -> None:
            model = rng.choice(self._models)
            match rng.randrange(4):
                case 0:
                    await self._client.models.load(model)
                case 1:
                    await self._client.models.unload(model)
                case 2:
                    await self._client.models.pin(model)
                case _:
                    for pinned in await self._client.models.list():
                        if pinned.pinned:
                            await self._client.models.pin(pinned.name, False)

        self._operate("load and pin", load_and_pin)
