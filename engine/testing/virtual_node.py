"""A node on virtual time, for tests and benchmarks: no processes, no threads, no weights, no waiting.

Its executors are virtual devices: they complete launches after a cost model's durations. What an executor
cannot know, how many tokens a request will draw, the test says.
"""

import itertools
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf

from tokenmux.core.cost import CostModel
from tokenmux.core.effects import Effects, operations_started
from tokenmux.core.errors import DoesNotFit, ErrorCode, InternalError
from tokenmux.core.event import CopyDone, Resized, StepDone
from tokenmux.core.facts import DeviceFacts, HostFacts, ImageId, InstanceId, ModelFacts, ModelId
from tokenmux.core.pooling import PooledRows
from tokenmux.core.request import DEFAULT_LEVEL, Request, RequestId, ServiceLevel
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.core.sampling import LogProbabilities, Sampling
from tokenmux.core.started import Started
from tokenmux.messages.commands import Command, Order, Submit, Ticket
from tokenmux.messages.completions import (
    ArenaReallocated,
    CopyCompleted,
    Drew,
    ExecutorAlive,
    ExecutorReady,
    ExecutorReport,
    StepCompleted,
)
from tokenmux.messages.launches import (
    AddModel,
    Bind,
    FetchLaunch,
    Instruction,
    Instructions,
    MapImage,
    MoveLaunch,
    OperationId,
    PagingLaunch,
    ReallocateArena,
    RemoveModel,
    StepLaunch,
    StepSegment,
    StopCopy,
    StopStep,
    Unbind,
    UnmapImage,
    WeightsLaunch,
)
from tokenmux.messages.reports import Report
from tokenmux.messages.setups import DeviceSetup, NodeSetup
from tokenmux.node.host_memory import HostMemory
from tokenmux.node.node import Node
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.policy.instance_policy import InstancePolicy
from tokenmux.scheduler.policy.registry import make_policy
from tokenmux.scheduler.pool.pool import Pool
from tokenmux.simulator.virtual_clock import VirtualClock
from tokenmux.simulator.virtual_device import VirtualDevice

HOST = HostFacts(cache_bytes=200 * 10**9, fetch_bytes_per_s=8e9)


def setup_of(
    *devices: DeviceFacts,
    host: HostFacts = HOST,
    host_kv_bytes: int | None = None,
    policy: str = "slack",
    service: ServiceLevel = DEFAULT_LEVEL,
    prefix_cache: bool = False,
) -> NodeSetup:
    """The setup of a node with these devices. By default their host memory for KV is one, as large as all of
    theirs."""
    if host_kv_bytes is None:
        host_kv_bytes = sum(facts.host_kv_bytes for facts in devices)
    setups = tuple(DeviceSetup(facts) for facts in devices)
    return NodeSetup(setups, host, host_kv_bytes, policy, service, prefix_cache=prefix_cache)


class ImaginedMemory(HostMemory):
    """Host memory of any size, of which the machine provides nothing."""

    def _create(self, name: str, n_bytes: int, *, allocated: bool = False) -> int:
        return -1

    def _release(self, descriptor: int) -> None:
        pass


class VirtualExecutor:
    """One device on virtual time: `tokenmux.node.executor_port.ExecutorPort`. `log` holds what it was
    told."""

    def __init__(
        self, body: "NodeOnVirtualTime", index: InstanceId, instance: Instance, cost: CostModel
    ) -> None:
        self.log: list[Instruction] = []
        self.is_dead = False
        self.is_stopped = False
        """True if it reads and says nothing, as after SIGSTOP."""
        self._body = body
        self.index = index
        self._instance = instance
        self._started = body.started_on(index)
        self._drawing: dict[int, tuple[RequestId, ...]] = {}
        self._told: dict[int, ImaginedTold] = {}
        """What each step tells of prompts: minus the id of a token as its log-probability."""
        self._pooled: dict[int, ImaginedPooled] = {}
        """The sums of hidden states that each step tells: those of token ids."""
        self._models: dict[ModelId, ModelFacts] = {}
        self._met: set[ModelId] = set()
        """Models that were there when an image of theirs was mapped: they can step."""
        self._images: set[ImageId] = set()
        left = lambda request: body.n_output[request] - instance.requests[request].n_drawn
        self._device = VirtualDevice(instance, cost, body.clock, self, left, on_drawn=self._drawn)

    def send(self, instructions: Instructions, descriptors: Sequence[int] = ()) -> None:
        for instruction in () if self.is_dead or self.is_stopped else instructions:
            self.log.append(instruction)
            self._carry_out(instruction)

    def kill(self) -> None:
        """As SIGKILL: the node hears of its end at this moment, after what it is doing."""
        if not self.is_dead:
            self.is_dead = True
            self._device.close()
            clock = self._body.clock
            clock.call_at(clock.now_s(), lambda: self._body.ended(self.index, "killed"))

    # the device's `CompletionPost`
    def done(self, completion: StepDone | CopyDone | Resized) -> None:
        if isinstance(completion, Resized):
            self.say(ArenaReallocated(completion.arena_bytes))
            return
        if isinstance(completion, CopyDone):
            operation = OperationId(completion.operation)
            self.say(CopyCompleted(operation, completion.at_s, superseded=completion.superseded))
            return
        drawing = self._drawing.pop(completion.operation)
        finished = {request for request, _ in completion.finished}
        stopped = tuple(place for place, request in enumerate(drawing) if request in finished)
        operation = OperationId(completion.operation)
        told, pooled = self._told.pop(completion.operation), self._pooled.pop(completion.operation)
        drawn = (0,) * len(drawing)
        self.say(StepCompleted(operation, completion.ends_s, drawn, stopped, told=told, pooled=pooled))

    def _drawn(self, at_s: float, tokens: tuple[tuple[RequestId, int], ...]) -> None:
        """Every iteration but the last is reported when it ends, the last one with the end of the step."""
        if at_s < self._device.step_end_s:
            operation = next(iter(self._drawing))
            self.say(Drew(OperationId(operation), at_s, tuple(token for _, token in tokens)))

    def _check(self, instruction: Instruction) -> None:
        """Raise InternalError for what a real executor could not carry out."""
        models, images = self._models, self._images
        match instruction:
            case AddModel(facts):
                is_right = facts.id not in models
                models[facts.id] = facts
            case RemoveModel(model):
                is_right = models.pop(model, None) is not None
                self._met.discard(model)
            case StepLaunch(_, model):
                is_right = model in self._met
            case Bind(model) | Unbind(model) | FetchLaunch(_, model):
                is_right = model in models
            case MapImage(image):
                is_right = image not in images
                images.add(image)
                self._met.update(m.id for m in models.values() if any(own.id == image for own in m.images))
            case UnmapImage(image):
                is_right = image in images
                images.discard(image)
            case WeightsLaunch(_, placed):
                is_right = images >= {image.image for image in placed}
            case PagingLaunch(_, _, paged):
                is_right = models.keys() >= {blocks.model for blocks in paged}
            case _:
                is_right = True
        if not is_right:
            raise InternalError(f"executor {self.index} cannot carry out {instruction}")

    def _carry_out(self, instruction: Instruction) -> None:
        self._check(instruction)
        match instruction:
            case StepLaunch(operation, _, segments):
                started = self._started.pop(operation)
                self._device.start(started)
                chunks = started.operation.chunks  # type: ignore[union-attr]
                self._drawing[operation] = tuple(
                    chunk.request for chunk, s in zip(chunks, segments, strict=True) if s.draws
                )
                self._told[operation] = tuple(
                    (place, tuple(LogProbabilities(-float(token)) for token in s.telling.targets))
                    for place, s in enumerate(segments)
                    if s.telling is not None
                )
                self._pooled[operation] = tuple(
                    (place, rows)
                    for place, s in enumerate(segments)
                    for rows in imagined_sums(s, self._instance.device.cell_tokens)
                )
            case FetchLaunch(operation, model) if model in self._body.unreadable:
                del self._started[operation]
                now_s = self._body.clock.now_s()
                failed = CopyCompleted(operation, now_s, "the file is gone", ErrorCode.BAD_CHECKPOINT)
                self._body.clock.call_at(failed.at_s, lambda: self.say(failed))
            case WeightsLaunch() | PagingLaunch() | MoveLaunch() | FetchLaunch():
                self._device.start(self._started.pop(instruction.operation))
            case StopStep():
                self._device.interrupt()
            case StopCopy(operation):
                self._device.supersede(operation)
            case ReallocateArena(arena_bytes) if arena_bytes > self._body.most_arena_bytes:
                error = DoesNotFit(f"there are only {self._body.most_arena_bytes} bytes")
                kept_bytes = self._instance.device.arena_bytes
                refused = ArenaReallocated(kept_bytes, str(error), error.code)
                self._body.clock.call_at(self._body.clock.now_s(), lambda: self.say(refused))
            case ReallocateArena(arena_bytes):
                self._device.resize(arena_bytes)
            case _:
                pass

    def say(self, completion: ExecutorReport) -> None:
        if not self.is_dead and not self.is_stopped:
            self._body.heard(self.index, (completion,))


ImaginedTold = tuple[tuple[int, tuple[LogProbabilities, ...]], ...]
ImaginedPooled = tuple[tuple[int, PooledRows], ...]


def imagined_sums(segment: StepSegment, cell_tokens: int) -> Iterator[PooledRows]:
    """The sums that a step tells of a segment, as if the hidden state of a token were its id."""
    first, last = segment.pooled or (0, 0)
    while first < last:
        end = min(last, (first // cell_tokens + 1) * cell_tokens)
        ids = segment.token_ids[first - segment.start : end - segment.start]
        yield PooledRows(first, len(ids), array("f", [float(sum(ids))]).tobytes())
        first = end


class NodeOnVirtualTime:
    """The node's single thread, played by the virtual clock. `n_output` says after how many tokens a request
    stops by itself."""

    def __init__(
        self,
        setup: NodeSetup,
        n_output: Mapping[RequestId, int],
        *,
        start_s: float = 0.0,
        truth: Callable[[DeviceSetup], CostModel] | None = None,
        policies: Callable[[str], InstancePolicy] = make_policy,
    ) -> None:
        """An executor takes `start_s` until it is ready. `truth` gives the durations of a device's
        operations, `policies` make the policy of an instance from its name in the setup."""
        self.said: list[Report] = []
        self.clock = VirtualClock()
        self.n_output = n_output
        self.executors: list[VirtualExecutor] = []
        """All that were ever started."""
        self._start_s = start_s
        self._truth = truth or (lambda device: RooflineCost(device.facts, setup.host))
        self._tickets = itertools.count(1)
        self._started: dict[int, dict[int, Started]] = {}
        self._wakes_s = inf
        self.most_arena_bytes = inf
        """What a device has at most."""
        self.unreadable: set[ModelId] = set()
        """Models whose files cannot be read now."""
        self.node = Node(setup, self.clock, self, self.emit, policies=policies, memory=ImaginedMemory)
        self.node.observers.append(self._observe)
        self.react(self.node.start)

    @property
    def pool(self) -> Pool:
        return self.node.pool

    @property
    def instance(self) -> Instance:
        """That of the first device."""
        return self.pool.instances[0]

    def executor_of(self, index: int) -> VirtualExecutor:
        """The newest executor of a device."""
        return next(executor for executor in reversed(self.executors) if executor.index == index)

    def started_on(self, index: int) -> dict[int, Started]:
        """Operations of an instance that its executor has not been told of yet, by their ids."""
        return self._started.setdefault(index, {})

    def observe(self, index: int, at_s: float, effects: Effects) -> None:
        """Called with all effects before they are carried out. Override it."""

    def emit(self, messages: list[Report]) -> None:
        self.said += messages

    def send(self, command: Command) -> Ticket:
        """Have the node receive a command; returns its ticket."""
        ticket = Ticket(next(self._tickets))
        self.react(lambda: self.node.receive(Order(ticket, command)))
        return ticket

    def _send(self, command: Command) -> None:
        self.send(command)

    def submit_at(self, request: Request, prompt: Sequence[int] | None = None) -> None:
        """Have a request come at its time. By default all prompts begin alike."""
        submit = Submit(request, tuple(prompt or (0,) * request.n_prompt), sampling=Sampling())
        self.clock.call_at(request.arrival_s, lambda: self._send(submit))

    def beat(self) -> None:
        """A second has passed: the executors, and the node, say that they live."""
        for executor in self.executors:
            executor.say(ExecutorAlive())
        self.node.beat()

    def heard(self, index: InstanceId, completions: tuple[ExecutorReport, ...]) -> None:
        self.react(lambda: self.node.heard(index, completions))

    def ended(self, index: InstanceId, detail: str) -> None:
        self.react(lambda: self.node.ended(index, detail))

    def react(self, call: Callable[[], None]) -> None:
        """One turn of the node's thread: handle `call`, then send what it causes, and sleep until something
        is due. Override it to measure."""
        call()
        self.node.pump()
        due_s = self.node.next_due_s
        if due_s is not None and due_s < self._wakes_s:
            self._wakes_s = due_s
            self.clock.call_at(due_s, lambda: self._wake(due_s))

    def _wake(self, due_s: float) -> None:
        if due_s == self._wakes_s:  # or an earlier call has taken this one's place
            self._wakes_s = inf
            self.react(lambda: None)

    def _observe(self, index: int, at_s: float, effects: Effects) -> None:
        for started in operations_started(effects):
            self.started_on(index)[started.id] = started
        self.observe(index, at_s, effects)

    # the node's `ExecutorFactory`
    def prepare(self, *, n_devices: int, is_quiet: bool) -> None:
        """Do nothing: virtual executors need no libraries."""

    def __call__(
        self, index: InstanceId, device: DeviceSetup, host_kv: int, *, n_devices: int
    ) -> VirtualExecutor:
        self._started.pop(index, None)
        instance = self.node.pool.instances[index]
        executor = VirtualExecutor(self, index, instance, self._truth(device))
        self.executors.append(executor)
        ready_s = self.clock.now_s() + self._start_s
        self.clock.call_at(ready_s, lambda: executor.say(ExecutorReady()))
        return executor
