"""A double of an executor that checks what it is told: `tokenmux.node.executor_port.ExecutorPort`.

It carries launches out on memory whose content can be checked (`memories`), after times drawn by lot. A token
that it draws depends on all KV before it, so that KV that is stale, lost or somebody else's shows as a wrong
token. Launches that touch the same bytes at the same time are a fault, and so is everything that a real
executor could not do. It may be killed, stopped, or break at any time.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import assert_never

from tests.chaos.links import Link
from tests.chaos.memories import UNIT, Cell, Memory, MemoryFault, drawn, next_value
from tests.chaos.virtual_loop import VirtualLoop
from tokenmux.core.errors import ErrorCode
from tokenmux.core.facts import ImageId, InstanceId, ModelFacts, ModelId
from tokenmux.core.plan import Channel
from tokenmux.messages.completions import (
    ArenaReallocated,
    CopyCompleted,
    CopyProgressed,
    Drew,
    ExecutorAlive,
    ExecutorBroken,
    ExecutorReady,
    ExecutorReport,
    GrammarReady,
    StepCompleted,
)
from tokenmux.messages.launches import (
    AddGrammar,
    AddModel,
    Bind,
    CloseExecutor,
    FetchLaunch,
    Instruction,
    Instructions,
    Launch,
    MapImage,
    MoveLaunch,
    OperationId,
    PagedBlocks,
    PagingLaunch,
    ReallocateArena,
    RemoveGrammar,
    RemoveModel,
    StepLaunch,
    StopCopy,
    StopStep,
    Unbind,
    UnmapImage,
    WeightsLaunch,
)
from tokenmux.messages.setups import DeviceSetup

POISON = 255
"""A prompt's token that breaks every executor that computes it."""

ALIVE_S = 4.0

Models = Mapping[ModelId, ModelFacts]


@dataclass(frozen=True, slots=True)
class Chances:
    """How the doubles behave: longest times in seconds, and the probability of faults."""

    message_s: float
    step_s: float
    copy_s: float
    fetch_s: float
    start_s: float
    fetch_fails: float
    arena_fails: float
    breaks: float
    """Of a step: the device reports an error."""


class HostRanges:
    """Which units of host memory are read and written by copies in flight, whoever makes them."""

    def __init__(self) -> None:
        self.in_flight: dict[tuple[int, int], Touched] = {}


@dataclass(frozen=True, slots=True)
class Touched:
    """Units that an operation in flight reads, writes, and appends tokens to, which leaves those before as
    they are."""

    reads: frozenset[int] = frozenset()
    writes: frozenset[int] = frozenset()
    appends: frozenset[int] = frozenset()

    def hurts(self, other: "Touched") -> bool:
        return bool(
            self.writes & (other.reads | other.writes | other.appends)
            or other.writes & (self.reads | self.appends)
            or self.appends & other.appends
        )


@dataclass(slots=True)
class NodeMemory:
    """The memory that a node owns and its executors map. `images` by the inode of their descriptors."""

    host_kv: Memory
    images: dict[int, str] = field(default_factory=dict)
    ranges: HostRanges = field(default_factory=HostRanges)


@dataclass(slots=True)
class _Operation:
    launch: Launch
    models: dict[ModelId, ModelFacts]
    """Those that were known when it was sent: one may be removed while its last step runs."""
    touched: Touched = field(default_factory=Touched)
    copied: list[tuple[int, int, list[int | None]]] = field(default_factory=list)
    """Of paging: where each block goes, its units, and what it held when the copy began."""
    outputs: list[list[int]] = field(default_factory=list)
    """Of a step: the tokens drawn so far, by segment."""
    ends_s: list[float] = field(default_factory=list)
    stopping: bool = False


class ExecutorDouble:
    """One executor; see the module. `heard` and `ended` reach the node."""

    def __init__(
        self,
        loop: VirtualLoop,
        rng: Random,
        chances: Chances,
        index: InstanceId,
        device: DeviceSetup,
        memory: NodeMemory,
        heard: Callable[["ExecutorDouble", tuple[ExecutorReport, ...]], None],
        ended: Callable[["ExecutorDouble"], None],
    ) -> None:
        self.index = index
        self.is_dead = False
        self.is_stopped = False
        self.is_ready = False
        self.told: Counter[str] = Counter()
        self.mapped: dict[ImageId, int] = {}
        """Inodes of images."""
        self.models: dict[ModelId, AddModel] = {}
        self._met: set[ModelId] = set()
        """Models that were there when an image of theirs was mapped: they can step."""
        self.grammars: dict[tuple[ModelId, str], bool] = {}
        """Those that it was told of; True once they are compiled."""
        self._loop = loop
        self._rng = rng
        self._chances = chances
        self._memory = memory
        self._ended = ended
        self._in: Link[tuple[Instructions, tuple[int, ...]]] = Link(
            loop, rng, chances.message_s, self._received
        )
        self._out: Link[tuple[ExecutorReport, ...]] = Link(loop, rng, chances.message_s, partial(heard, self))
        self._arena = Memory(device.facts.arena_bytes)
        self._arena_bytes = device.facts.arena_bytes
        self._bound: dict[ModelId, int] = {}
        self._channels: dict[Channel, deque[_Operation]] = {channel: deque() for channel in Channel}
        self._waiting: deque[tuple[Instructions, tuple[int, ...]]] = deque()
        self._held: list[Callable[[], None]] = []
        """What has been due while the process is stopped."""
        self._later(rng.random() * chances.start_s, self._start)

    # ── as the node sees it ─────────────────────────────────────────────────────────────────────────────────

    def send(self, instructions: Instructions, descriptors: Sequence[int] = ()) -> None:
        maps = sum(isinstance(instruction, MapImage) for instruction in instructions)
        assert maps == len(descriptors), f"{maps} images to map, and {len(descriptors)} descriptors"
        self.told.update(type(instruction).__name__ for instruction in instructions)
        if not self.is_dead:
            self._in.send((instructions, tuple(os.fstat(each).st_ino for each in descriptors)))

    def kill(self) -> None:
        """As SIGKILL: copies in flight go on for a moment, and the end is known later."""
        if not self.is_dead:
            self.is_dead = True
            self._in.cut()
            self._loop.call_later(0.05 * self._rng.random(), self._end)

    @property
    def knows_all(self) -> bool:
        """True if everything that the node has sent has arrived."""
        return self._in.is_empty

    # ── as the monkey sees it ───────────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        self.is_stopped = True

    def go_on(self) -> None:
        self.is_stopped = False
        held, self._held = self._held, []
        for call in held:
            self._due(call)

    def vanish(self) -> None:
        """Die with the node."""
        self.is_dead = True
        self._in.cut()
        self._out.cut()

    # ── its life ────────────────────────────────────────────────────────────────────────────────────────────

    def _end(self) -> None:
        """The process is gone: what a page-out has written of its blocks is not known."""
        for operation in (operation for queue in self._channels.values() for operation in queue):
            self._memory.ranges.in_flight.pop((id(self), operation.launch.operation), None)
            if isinstance(operation.launch, PagingLaunch) and not operation.launch.into_device:
                for offset, n_units, values in operation.copied:
                    if self._rng.random() < 0.5:
                        self._half_write(offset, n_units, values)
        self._out.end()
        self._ended(self)

    def _half_write(self, offset: int, n_units: int, values: list[int | None]) -> None:
        """A block was being copied to the host: what was there already is written again as it is."""
        before = self._memory.host_kv.read(offset)
        held = before.values if before is not None and before.n_units == n_units else []
        kept = [new if i < len(held) and held[i] == new else None for i, new in enumerate(values)]
        self._memory.host_kv.write(offset, Cell(n_units, kept))

    def _start(self) -> None:
        self.is_ready = True
        self._say(ExecutorReady())
        self._beat()
        while self._waiting:
            self._carry_out(*self._waiting.popleft())

    def _beat(self) -> None:
        self._say(ExecutorAlive())
        self._later(ALIVE_S, self._beat)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._loop.call_later(seconds, self._due, call)

    def _due(self, call: Callable[[], None]) -> None:
        if self.is_dead:
            return
        if self.is_stopped:
            self._held.append(call)
        else:
            call()

    def _say(self, *completions: ExecutorReport) -> None:
        self._out.send(completions)

    def _received(self, message: tuple[Instructions, tuple[int, ...]]) -> None:
        if self.is_stopped:
            self._held.append(partial(self._received, message))
        elif self.is_ready:
            self._carry_out(*message)
        else:
            self._waiting.append(message)

    # ── instructions ────────────────────────────────────────────────────────────────────────────────────────

    def _carry_out(self, instructions: Instructions, inodes: tuple[int, ...]) -> None:
        left = iter(inodes)
        for instruction in instructions:
            if self.is_dead:
                return
            self._instruct(instruction, left)

    def _instruct(self, instruction: Instruction, inodes: Iterator[int]) -> None:
        match instruction:
            case StepLaunch(model=model):
                assert model in self._met, f"{model} steps, and came after its image was mapped"
                self._check_grammars(instruction)
                self._take(Channel.COMPUTE, instruction)
            case AddGrammar(model, grammar):
                self.grammars.setdefault((model, grammar.id), False)
                seconds = self._rng.random() * self._chances.fetch_s
                self._later(seconds, partial(self._compiled, model, grammar.id))
            case RemoveGrammar(model, grammar_id):
                del self.grammars[model, grammar_id]
            case WeightsLaunch() | MoveLaunch():
                self._take(Channel.COPY_IN, instruction)
            case PagingLaunch(into_device=into_device):
                self._take(Channel.COPY_IN if into_device else Channel.COPY_OUT, instruction)
            case FetchLaunch():
                self._take(Channel.FETCH, instruction)
            case StopStep(operation):
                for step in self._channels[Channel.COMPUTE]:
                    step.stopping = step.stopping or step.launch.operation == operation
            case StopCopy(operation):
                for channel in (Channel.COPY_IN, Channel.FETCH):
                    for copy in self._channels[channel]:
                        copy.stopping = copy.stopping or copy.launch.operation == operation
            case AddModel(facts):
                self.models[facts.id] = instruction
            case RemoveModel(model):
                del self.models[model]
                self._met.discard(model)
                self._bound.pop(model, None)
                for key in [key for key in self.grammars if key[0] == model]:
                    del self.grammars[key]
            case Bind(model, offset):
                assert model in self.models, f"{model} is bound and was never added"
                self._bound[model] = offset
            case Unbind(model):
                self._bound.pop(model, None)
            case MapImage(image, _, filled):
                inode = next(inodes)
                assert image not in self.mapped, f"{image} is mapped twice"
                self.mapped[image] = inode
                self._met.update(
                    added.facts.id
                    for added in self.models.values()
                    if any(own.id == image for own in added.facts.images)
                )
                if filled and self._memory.images.get(inode) != image:
                    raise MemoryFault(f"{image} is said to be in host memory, and is not")
            case UnmapImage(image):
                assert image in self.mapped, f"{image} is unmapped and was not mapped"
                for operation in self._channels[Channel.FETCH]:
                    named = isinstance(operation.launch, FetchLaunch) and operation.launch.images
                    assert not any(i.id == image for i in named or ()), f"{image} is unmapped in its fetch"
                del self.mapped[image]
            case ReallocateArena(arena_bytes):
                busy = [name for name, queue in self._channels.items() if queue]
                assert not busy, f"the arena is reallocated while {busy} are busy"
                self._bound.clear()
                self._arena = Memory(0)
                self._later(self._rng.random() * self._chances.copy_s, partial(self._resized, arena_bytes))
            case CloseExecutor():
                self.kill()
            case _:
                assert_never(instruction)

    def _check_grammars(self, step: StepLaunch) -> None:
        """The output so far, which decides what may come next, is that of the request."""
        for segment in step.segments:
            if segment.grammar is not None:
                key, output = (step.model, segment.grammar.id), segment.grammar.output
                assert key in self.grammars, f"grammar {key} is used and was not added"
                self.told["step before its grammar is compiled"] += not self.grammars[key]
                end = segment.start + len(segment.token_ids)
                assert len(output) == end - segment.n_prompt, f"an output of {len(output)} in {segment}"
                n_both = min(len(output), len(segment.token_ids))
                assert output[len(output) - n_both :] == segment.token_ids[len(segment.token_ids) - n_both :]

    def _compiled(self, model: ModelId, grammar_id: str) -> None:
        if (model, grammar_id) in self.grammars:
            self.grammars[model, grammar_id] = True
            self._say(GrammarReady(model, grammar_id))

    def _resized(self, arena_bytes: int) -> None:
        error = "no memory" if self._rng.random() < self._chances.arena_fails else ""
        if not error:
            self._arena_bytes = arena_bytes
        self._arena = Memory(self._arena_bytes)
        code = ErrorCode.DOES_NOT_FIT if error else None
        self._say(ArenaReallocated(self._arena_bytes, error, code))

    def _take(self, channel: Channel, launch: Launch) -> None:
        queue = self._channels[channel]
        queue.append(_Operation(launch, {model: added.facts for model, added in self.models.items()}))
        if len(queue) == 1:
            self._begin(channel)

    def _begin(self, channel: Channel) -> None:
        operation = self._channels[channel][0]
        launch = operation.launch
        operation.touched, host = self._touched(launch, operation.models)
        for others in self._channels.values():
            for other in others:
                if other is not operation and other.touched.hurts(operation.touched):
                    raise MemoryFault(f"{launch} touches what {other.launch} works on")
        ranges = self._memory.ranges.in_flight
        if any(other.hurts(host) for other in ranges.values()):
            raise MemoryFault(f"{launch} touches host memory that another copy works on")
        if host.reads or host.writes:
            ranges[id(self), launch.operation] = host
        chances, rng = self._chances, self._rng
        match launch:
            case StepLaunch(segments=segments):
                operation.outputs = [[] for _ in segments]
                if any(POISON in segment.token_ids for segment in segments):
                    self._later(rng.random() * chances.step_s, self.kill)
                elif rng.random() < chances.breaks:
                    self._later(rng.random() * chances.step_s, self._break)
                else:
                    self._iterate(operation)
            case FetchLaunch():
                if rng.random() < 0.3:
                    self._say(CopyProgressed(launch.operation, 0.5))
                self._later(rng.random() * chances.fetch_s, partial(self._complete_fetch, operation))
            case _:
                if isinstance(launch, PagingLaunch):
                    operation.copied = list(self._copied(launch, operation.models))
                seconds = rng.random() * chances.copy_s
                self._later(seconds, partial(self._complete_copy, channel, operation))

    def _break(self) -> None:
        self._say(ExecutorBroken("an illegal address"))
        self._later(0.001, self.kill)

    def _touched(self, launch: Launch, models: Models) -> tuple[Touched, Touched]:
        none = Touched()
        match launch:
            case StepLaunch(model=model, segments=segments, repeat=repeat):
                kv = models[model].kv
                reads = set(self._weights_of(models[model]))
                writes, appends = set[int](), set[int]()
                for s in segments:
                    first = s.start // kv.block_size
                    last = (s.start + len(s.token_ids) + repeat - 2) // kv.block_size
                    if last >= len(s.blocks):
                        raise MemoryFault(f"a step of {model} has too few blocks")
                    for place, block in enumerate(s.blocks[: last + 1]):
                        units = _units(block * kv.block_bytes, kv.block_bytes)
                        if place == first and s.start % kv.block_size:
                            appends.update(units)
                        else:
                            (writes if first <= place else reads).update(units)
                return Touched(frozenset(reads), frozenset(writes), frozenset(appends)), none
            case WeightsLaunch(images=images):
                placed = {u for image in images for u in _units(image.offset, image.n_bytes)}
                return Touched(writes=frozenset(placed)), none
            case MoveLaunch(moves=moves):
                moved = {u for m in moves for at in (m.source, m.target) for u in _units(at, m.n_bytes)}
                return Touched(writes=frozenset(moved)), none
            case PagingLaunch(into_device=into_device, requests=requests):
                arena = frozenset(u for paged in requests for u in _paged_units(models, paged, paged.device))
                host = frozenset(u for paged in requests for u in _paged_units(models, paged, paged.host))
                if into_device:
                    return Touched(writes=arena), Touched(reads=host)
                return Touched(reads=arena), Touched(writes=host)
            case FetchLaunch():
                return none, none

    def _weights_of(self, facts: ModelFacts) -> range:
        model = facts.id
        if model not in self._bound:
            raise MemoryFault(f"a step of {model}, which is not bound")
        image, offset = facts.images[0], self._bound[model]
        cell = self._arena.read(offset)
        if cell is None or cell.image != image.id:
            raise MemoryFault(f"a step of {model}, and its weights are not at {offset}")
        return _units(offset, image.n_bytes)

    # ── the end of operations ───────────────────────────────────────────────────────────────────────────────

    def _next_on(self, channel: Channel) -> None:
        queue = self._channels[channel]
        operation = queue.popleft()
        self._memory.ranges.in_flight.pop((id(self), operation.launch.operation), None)
        if queue:
            self._begin(channel)

    def _iterate(self, step: _Operation) -> None:
        self._later(self._rng.random() * self._chances.step_s, partial(self._complete_iteration, step))

    def _complete_iteration(self, step: _Operation) -> None:
        launch = step.launch
        assert isinstance(launch, StepLaunch)
        facts, n_done = step.models[launch.model], len(step.ends_s)
        tokens, stopped = [], []
        for segment, output in zip(launch.segments, step.outputs, strict=True):
            if n_done:
                start, new = segment.start + len(segment.token_ids) + n_done - 1, (output[-1],)
            else:
                start, new = segment.start, segment.token_ids
            total = self._attend(facts, segment.blocks, start, new)
            if segment.draws:
                output.append(drawn(total, segment.sampling.seed, facts.vocab_size))
                n_output = start + len(new) + 1 - segment.n_prompt
                if output[-1] in segment.stop_token_ids and n_output >= segment.min_tokens:
                    stopped.append(len(tokens))
                tokens.append(output[-1])
        step.ends_s.append(self._loop.time())
        operation = launch.operation
        if stopped or step.stopping or len(step.ends_s) == launch.repeat:
            self._next_on(Channel.COMPUTE)
            self._say(StepCompleted(operation, tuple(step.ends_s), tuple(tokens), tuple(stopped)))
        else:
            self._say(Drew(operation, self._loop.time(), tuple(tokens)))
            self._iterate(step)

    def _attend(self, facts: ModelFacts, blocks: tuple[int, ...], start: int, tokens: tuple[int, ...]) -> int:
        """Write the KV of tokens from `start` on. Returns the sum of all values so far."""
        model, kv = facts.id, facts.kv
        size, n_units = kv.block_size, kv.block_bytes // UNIT
        total = 0
        for place in range(-(-start // size)):
            cell = self._arena.read(blocks[place] * kv.block_bytes)
            values = cell.values[: start - place * size] if cell and cell.n_units == n_units else [None]
            if None in values:
                raise MemoryFault(f"{model}: the KV of tokens before {start} is not in block {blocks[place]}")
            total += sum(values)  # type: ignore[arg-type]
        for position, token in enumerate(tokens, start):
            place, slot = divmod(position, size)
            offset = blocks[place] * kv.block_bytes
            cell = self._arena.read(offset)
            if cell is None or cell.n_units != n_units or len(cell.values) != size or not slot:
                cell = Cell(n_units, [None] * size)
                self._arena.write(offset, cell)
            cell.values[slot] = next_value(total, token)
            total += cell.values[slot]  # type: ignore[operator]
        return total

    def _copied(self, launch: PagingLaunch, models: Models) -> Iterator[tuple[int, int, list[int | None]]]:
        source = self._memory.host_kv if launch.into_device else self._arena
        for paged in launch.requests:
            block_bytes = models[paged.model].kv.block_bytes
            for at_device, at_host in zip(paged.device, paged.host, strict=True):
                at, to = (at_host, at_device) if launch.into_device else (at_device, at_host)
                cell = source.read(at * block_bytes)
                if cell is None or cell.n_units * UNIT != block_bytes or not cell.values:
                    raise MemoryFault(f"{launch} copies a block that is not there")
                yield to * block_bytes, cell.n_units, list(cell.values)

    def _complete_copy(self, channel: Channel, operation: _Operation) -> None:
        launch, superseded = operation.launch, False
        match launch:
            case WeightsLaunch(images=images):
                superseded = operation.stopping
                for placed in images:
                    held = self._memory.images.get(self.mapped.get(placed.image, -1))
                    if held != placed.image:
                        raise MemoryFault(f"{placed.image} is copied from host memory and is not there")
                    name = "" if superseded else held
                    self._arena.write(placed.offset, Cell(len(_units(0, placed.n_bytes)), [], name))
            case MoveLaunch(moves=moves):
                for move in moves:
                    self._arena.move(move.source, move.target, move.n_bytes)
            case PagingLaunch(into_device=into_device):
                target = self._arena if into_device else self._memory.host_kv
                for offset, n_units, values in operation.copied:
                    target.write(offset, Cell(n_units, values))
            case _:
                raise AssertionError(launch)
        self._next_on(channel)
        self._say(CopyCompleted(launch.operation, self._loop.time(), superseded=superseded))

    def _complete_fetch(self, operation: _Operation) -> None:
        launch = operation.launch
        assert isinstance(launch, FetchLaunch)
        superseded = operation.stopping
        fails = not superseded and self._rng.random() < self._chances.fetch_fails
        for image in launch.images:
            if image.id not in self.mapped:
                raise MemoryFault(f"{image.id} is fetched without memory for it")
            if not fails and not superseded:
                self._memory.images[self.mapped[image.id]] = image.id
        self._next_on(Channel.FETCH)
        error, code = ("the disk is broken", ErrorCode.BAD_CHECKPOINT) if fails else ("", None)
        operation_id = OperationId(launch.operation)
        self._say(CopyCompleted(operation_id, self._loop.time(), error, code, superseded))


def _paged_units(models: Models, paged: PagedBlocks, blocks: Sequence[int]) -> Iterator[int]:
    block_bytes = models[paged.model].kv.block_bytes
    for block in blocks:
        yield from _units(block * block_bytes, block_bytes)


def _units(offset: int, n_bytes: int) -> range:
    return range(offset // UNIT, -(-(offset + n_bytes) // UNIT))
