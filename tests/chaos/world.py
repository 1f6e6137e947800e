"""A whole pool in one loop on virtual time: the real front and the real node, over doubles of executors.

Everything is drawn from a seed: devices, models, clients, and what the monkey does. At the end every stream
is checked, and the books of front and node.
"""

import asyncio
import gc
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from random import Random
from unittest import mock

from tests.chaos import virtual_loop
from tests.chaos.executor_double import POISON, Chances
from tests.chaos.memories import expected_output
from tests.chaos.monkey import Monkey
from tests.chaos.node_double import NodeDouble
from tests.server.scripted_models import FakeCatalogue, FakeEntry
from tokenmux.core.errors import DoesNotFit, ErrorCode, TokenmuxError
from tokenmux.core.facts import DeviceFacts, HostFacts, Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.core.grammar import Grammar
from tokenmux.core.phases import DeviceState
from tokenmux.core.request import FinishReason
from tokenmux.messages.reports import Reports
from tokenmux.messages.setups import DeviceSetup, NodeSetup, PresentDevices
from tokenmux.processes.restarts import RestartLimits
from tokenmux.scheduler.memory.capacity import check_model, check_request
from tokenmux.server.front.device_source import WantedDevice
from tokenmux.server.front.front import Front
from tokenmux.server.front.generation import Ask, Constraint, FinishInfo, PromptInfo, TokenDelta, TokenIds
from tokenmux.server.front.limits import Limits
from tokenmux.server.nodes.supervisor import Patience
from tokenmux.testing.builders import make_device

VOCAB = 256
END = 0
CONTEXT = 64
SLAB = 512
PATIENCE_S = 900.0
"""Virtual seconds after the last mischief within which everything must have ended."""

EXPECTED_FAILURES = re.compile(
    r"its client left|is given up|was removed from the catalogue|no longer registered|unread for"
    r"|the disk is broken|(devices|nodes) broke again and again|no device serves|does not serve yet"
    r"|starts in .* s;|hung and is being replaced"
)
"""Why an accepted request may fail in these worlds."""


@dataclass(slots=True)
class Outcome:
    """How one client's request ended: "complete", "left", "refused", or "failed" with a reason."""

    how: str
    reason: str = ""
    n_tokens: int = 0


class Machine:
    """Where added devices come from."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def make(self, wanted: WantedDevice, present: Collection[DeviceSetup]) -> DeviceSetup:
        if len(present) >= 5:
            raise DoesNotFit("this machine has five devices")
        return device(wanted.arena_bytes or 8192)

    def check_resize(self, device: DeviceSetup, arena_bytes: int) -> None:
        """It has memory enough."""


@dataclass(frozen=True)
class Capacity:
    host: HostFacts

    def check_model(self, device: DeviceFacts, model: ModelFacts, pinned: Iterable[ModelFacts]) -> None:
        check_model(device, self.host, model, pinned)

    def check_request(
        self, device: DeviceFacts, model: ModelFacts, n_tokens: int, pinned: Iterable[ModelFacts]
    ) -> None:
        check_request(device, model, n_tokens, pinned)


class NoEncoder:
    """All prompts are token ids."""

    def close(self) -> None:
        """Nothing runs."""


class AnyGrammar:
    """Every text is a grammar."""

    async def read(self, constraint: Constraint) -> Grammar:
        return Grammar.of(constraint.text)

    def close(self) -> None:
        """Nothing runs."""


def device(arena_bytes: int) -> DeviceSetup:
    return DeviceSetup(make_device(arena_bytes, slab_bytes=SLAB))


def make_facts(name: str, rng: Random) -> ModelFacts:
    kv = KvShape(n_layers=rng.choice((1, 2)), n_kv_heads=1, head_dim=4, dtype_bytes=2, block_size=4)
    n_bytes = 256 * rng.randint(2, 8)
    return ModelFacts(
        ModelId(name), (Image(ImageId(f"{name}-image"), n_bytes),), kv, CONTEXT, n_bytes // 2, VOCAB
    )


class World:
    """One run; see the module."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = rng = Random(seed)
        self.nodes: list[NodeDouble] = []
        self.outcomes: list[Outcome] = []
        self.notes: list[str] = []
        """What the monkey did, for a person who replays the seed."""
        self.operators: Counter[str] = Counter()
        quick = rng.random() < 0.5
        self.chances = Chances(
            message_s=rng.choice((0.0, 0.001, 0.02)),
            step_s=rng.choice((0.005, 0.05)),
            copy_s=rng.choice((0.01, 0.2)),
            fetch_s=rng.choice((0.1, 1.0)),
            start_s=rng.choice((0.1, 3.0)),
            fetch_fails=rng.choice((0.0, 0.0, 0.1)),
            arena_fails=rng.choice((0.0, 0.3)),
            breaks=rng.choice((0.0, 0.0, 0.01)),
        )
        self.horizon_s = 2.0 if quick else 15.0
        is_crowded = rng.random() < 0.5
        models = [make_facts(f"m{i}", rng) for i in range(rng.randint(1, 5))]
        self.all_facts = {model.id: model for model in models}
        sizes = sorted((model.n_bytes for model in models), reverse=True)
        self.host = HostFacts(rng.choice((sizes[0], sum(sizes[:2]), sum(sizes))), 1e4)
        host_kv = SLAB * rng.choice((4, 12, 40))
        self.setups = tuple(
            device(SLAB * rng.randint(6, 12 if is_crowded else 24)) for _ in range(rng.randint(1, 4))
        )
        self._setup = NodeSetup(self.setups, self.host, host_kv)
        self.catalogue = FakeCatalogue(*(FakeEntry(model) for model in models))
        self.n_clients = rng.randint(2, 30 if is_crowded else 12)
        self.has_poison = rng.random() < 0.15
        self._limits = RestartLimits(longest_wait_s=8.0)
        self._n_ids = 0

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────

    def note(self, said: str) -> None:
        self.notes.append(f"{self.loop.time():9.4f}  {said}")

    @property
    def node(self) -> NodeDouble:
        return self.nodes[-1]

    def _factory(self, post: Callable[[Reports], None], *, devices: PresentDevices) -> NodeDouble:
        setup = NodeSetup(
            tuple(devices.setups.values()),
            self.host,
            self._setup.host_kv_bytes,
            instances=tuple(devices.setups),
            n_numbered=devices.n_numbered,
        )
        node = NodeDouble(self.loop, self.rng, self.chances, setup, self._limits, post)
        self.nodes.append(node)
        return node

    def _make_front(self) -> Front:
        return Front(
            self._factory,
            self.catalogue,
            Capacity(self.host),
            self.setups,
            Machine(self.rng),
            encoder=NoEncoder(),  # type: ignore[arg-type]
            grammars=AnyGrammar(),
            pinned=[name for name in self.all_facts if self.rng.random() < 0.1],
            limits=Limits(
                max_requests=64,
                buffer_tokens=self.rng.choice((3, 10, 500)),
                unread_s=20.0,
                restarts=self._limits,
                patience=Patience(10.0, 30.0),
            ),
            clock=self.loop.time,
            draw_seed=lambda: self.rng.getrandbits(32),
            sleep=asyncio.sleep,
        )

    def _next_id(self, _: int) -> str:
        self._n_ids += 1
        return f"r{self._n_ids}"

    # ── the run ─────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> Counter[str]:
        """Run it. Raises AssertionError, or what a process raised. Returns what happened, counted."""
        gc.collect()  # what earlier tests left in cycles has descriptors too
        gc.freeze()  # half a million objects of libraries: the next collection is for this world's alone
        before = _descriptors()
        with (
            mock.patch("tokenmux.server.front.admission.secrets.token_hex", self._next_id),
            mock.patch("tokenmux.node.node_status.STATUS_INTERVAL_S", 2.0),
        ):
            try:
                virtual_loop.run(self._main(), self.rng)
            finally:
                for node in self.nodes:
                    node.close()
        gc.collect()
        gc.unfreeze()
        assert _descriptors() == before, "descriptors are left"
        counts = Counter(outcome.how for outcome in self.outcomes)
        counts.update(self.operators)
        counts["nodes"] = len(self.nodes)
        for node in self.nodes:
            counts.update(node.told)
            counts["moves"] += 0 if node.node is None else node.node.pool.n_moves
        return counts

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, virtual_loop.VirtualLoop)
        self.loop = loop
        self.front = front = self._make_front()
        try:
            await front.start()
        except TokenmuxError as error:
            self.note(f"cannot start: {error}")
            await front.close()
            return
        clients = [asyncio.create_task(self._client(i), name=f"client {i}") for i in range(self.n_clients)]
        monkey = Monkey(self)
        await monkey.play()
        _, late = await asyncio.wait(clients, timeout=PATIENCE_S)
        assert not late, f"requests never ended: {self._where(late)}"
        for client in clients:
            client.result()
        await monkey.finish(PATIENCE_S)
        self.note("the mischief is over")
        await self._still_serves()
        await self._calm()
        self._check_books()
        await front.close()

    async def _client(self, number: int) -> None:
        rng = Random(f"{self.seed}-{number}")
        await asyncio.sleep(rng.random() * self.horizon_s)
        model = rng.choice(list(self.all_facts))
        prompt = [rng.randint(1, POISON - 1) for _ in range(rng.randint(1, 40))]
        if self.has_poison and not number:
            prompt[0] = POISON
        leaves_after = rng.randint(0, 12) if rng.random() < 0.2 else None
        pauses = rng.random() < 0.2
        max_tokens = rng.randint(1, 24)
        outcome = await self._request(model, prompt, max_tokens, rng, leaves_after, pauses)
        self.outcomes.append(outcome)
        self.note(f"client {number} of {model}: {outcome}")

    async def _request(
        self,
        model: str,
        prompt: list[int],
        max_tokens: int,
        rng: Random,
        leaves_after: int | None = None,
        pauses: bool = False,
    ) -> Outcome:
        seed = rng.getrandbits(32)
        constraint = Constraint("regex", str(rng.randrange(3))) if rng.random() < 0.3 else None
        ask = Ask(
            model,
            TokenIds(prompt),
            seed=seed,
            temperature=0.8,
            max_tokens=max_tokens,
            constraint=constraint,
        )
        got: list[int] = []
        end: FinishInfo | None = None
        accepted = False
        reason = ""
        try:
            async with self.front.open(ask) as stream:
                accepted = True
                async for event in stream:
                    assert end is None, "an event after the last one"
                    match event:
                        case PromptInfo(request=request):
                            self.note(f"{request} of {model}: {len(prompt)} + {max_tokens}")
                        case TokenDelta(index, token_ids):
                            assert index == len(got), f"tokens from {index}, after {len(got)}"
                            got += token_ids
                        case FinishInfo():
                            end = event
                    if leaves_after is not None and len(got) >= leaves_after and end is None:
                        break
                    if pauses and rng.random() < 0.3:
                        await asyncio.sleep(rng.choice((0.1, 3.0, 25.0)))
        except TokenmuxError as error:
            if error.code is ErrorCode.INTERNAL:
                raise
            reason = str(error)
        expected = expected_output(prompt, seed, max_tokens, frozenset({END}), VOCAB)
        assert tuple(got) == expected[: len(got)], f"{model}: {got} instead of {expected}"
        if end is not None:
            assert tuple(got) == expected, f"{model}: {got} is complete, instead of {expected}"
            is_full = len(got) == max_tokens
            why = FinishReason.LENGTH if is_full else FinishReason.STOP
            assert end.reason is why, f"{model}: {got} ended with {end.reason}, instead of {why}"
            return Outcome("complete", n_tokens=len(got))
        if not reason:
            assert leaves_after is not None, "a stream ended without an end"
            return Outcome("left", n_tokens=len(got))
        assert not accepted or EXPECTED_FAILURES.search(reason), f"a request failed: {reason}"
        return Outcome("failed" if accepted else "refused", reason, len(got))

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _still_serves(self) -> None:
        """After all mischief, the pool serves a request of every model that it says it serves."""
        for _ in range(int(PATIENCE_S)):
            status = self.front.node.status
            states = [] if status is None else [one.state for one in status.devices]
            if self.front.ready and states and not {DeviceState.STARTING, DeviceState.OUT} & {*states}:
                break
            await asyncio.sleep(1.0)
        else:
            raise AssertionError(f"devices do not serve again: {states}, ready {self.front.ready}")
        rng = Random(self.seed)
        for served in list(self.front.models):
            if served.refusal is not None:
                continue
            for _attempt in range(4):
                request = self._request(served.name, [1, 2, 3, 4, 5], 4, rng)
                outcome = await asyncio.wait_for(request, PATIENCE_S)
                if outcome.how == "complete" or "broke again and again" in outcome.reason:
                    break
                # A disk that fails, and a step that breaks the device, may do so again.
                await asyncio.sleep(20.0)
            else:
                raise AssertionError(f"{served.name} is served, and fails: {outcome}")

    async def _calm(self) -> None:
        """Wait until nothing is in flight."""
        n_idle = 0
        for _ in range(600):
            node = self.node.node
            is_idle = node is not None and all(d.instance.is_idle for d in node.devices.values())
            n_idle = n_idle + 1 if is_idle else 0
            is_quiet = all(executor.knows_all for executor in self.node.executors.values())
            if n_idle >= 2 and is_quiet:  # what was said before has been heard
                return
            await asyncio.sleep(0.5)
        raise AssertionError("devices are never idle")

    def _check_books(self) -> None:
        front, double = self.front, self.node
        assert not len(front.node.requests), "the front keeps requests that have ended"
        assert not front._places._held, "places are not given back"
        assert not front._places.n_admitting, "places are not given back"
        assert not front.node._commands._pending, "commands are never answered"
        node = double.node
        assert node is not None
        node.pool.check_integrity()
        assert not node.contents, f"the node keeps {node.contents}"
        for name in ("_paused", "_failures"):
            assert not getattr(node.accusations, name), f"accusations keep {name}"
        where, agenda = node.pool._whereabouts, node.pool._agenda
        kept_by_pool = (where.on, where.asked, where.between, agenda.events)
        assert not any(kept_by_pool), f"the pool keeps {kept_by_pool}"
        for name in ("_n_deaths", "_n_tokens", "_waiting", "_tried"):
            kept = getattr(node.accusations._blame, name)
            assert not kept, f"blame keeps {name}: {kept}"
        assert not node._host_kv.blocks.used_bytes, "paged-out KV is left"
        assert not node._host_kv.parked, "parked KV is left"
        cached = set(node._cache.cached)
        assert set(node.memory.images) == cached, f"{set(node.memory.images)} in memory, {cached} in books"
        assert not node._cache.held
        assert not node._cache.fetching
        assert not node._operators._resizing, "operators wait"
        assert not node._operators._adding, "operators wait"
        for index, one in node.devices.items():
            assert one.step is None, f"device {index} keeps a step"
            assert not one._copies, f"device {index} keeps {one._copies}"
            assert not one._unsent, f"device {index} keeps {one._unsent}"
            assert not one.stalls._watched, f"device {index} watches what has ended"
            executor = double.executors.get(index)
            if executor is not None and one.ready:
                told = {image for image, host in node.memory.images.items() if index in host.mapped_by}
                assert set(executor.mapped) == told, f"device {index} maps {set(executor.mapped)}, not {told}"
                assert set(executor.models) == set(node.models), "an executor knows other models"
        assert set(double.executors) <= set(node.devices), "an executor outlives its device"
        inodes = {os.fstat(image.descriptor).st_ino for image in node.memory.images.values()}
        assert inodes <= set(double.memory.images), "an image in memory was never filled"

    def _where(self, late: Iterable["asyncio.Task[None]"]) -> str:
        names = ", ".join(task.get_name() for task in late)
        node = self.node.node
        lines = [f"{names}; running: {self.front.node.running}"]
        if node is not None:
            for index, one in node.devices.items():
                lines.append(
                    f"device {index}: {one.state.value}, ready {one.ready}, dying {one.dying!r}, "
                    f"step {one.step and one.step.started}, requests {list(one.instance.requests)}, "
                    f"open {node.pool.open}, held {node.pool.held}"
                )
            lines.append(f"blame: {vars(node.accusations._blame)}; paused {node.accusations._paused}")
        return "\n".join(lines)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
