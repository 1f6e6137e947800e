"""A node on virtual time, for tests and benchmarks: no processes, no threads, no weights, no waiting.

Its executors are virtual devices: they complete launches after a cost model's durations. What an executor
cannot know, how many tokens a request will draw, the test says.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

from tokenmux.core.cost import CostModel
from tokenmux.core.effects import Effects, operations_started
from tokenmux.core.event import CopyDone, StepDone
from tokenmux.core.facts import HostFacts, InstanceId
from tokenmux.core.request import Request, RequestId
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.core.sampling import Sampling
from tokenmux.core.started import Started
from tokenmux.messages.commands import Command, Order, Submit, Ticket
from tokenmux.messages.completions import (
    ArenaReallocated,
    CopyCompleted,
    Drew,
    ExecutorReady,
    ExecutorReport,
    StepCompleted,
)
from tokenmux.messages.launches import (
    FetchLaunch,
    Instruction,
    Instructions,
    MoveLaunch,
    OperationId,
    PagingLaunch,
    ReallocateArena,
    StepLaunch,
    StopCopy,
    StopStep,
    WeightsLaunch,
)
from tokenmux.messages.reports import Report
from tokenmux.messages.setups import DeviceSetup, NodeSetup
from tokenmux.node.node import Node
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.simulator.virtual_clock import VirtualClock
from tokenmux.simulator.virtual_device import VirtualDevice

HOST = HostFacts(cache_bytes=200 * 10**9, fetch_bytes_per_s=8e9)


class VirtualExecutor:
    """One device on virtual time: `tokenmux.node.executor_port.ExecutorPort`. `log` holds what it was
    told."""

    def __init__(
        self, body: "NodeOnVirtualTime", index: InstanceId, instance: Instance, cost: CostModel
    ) -> None:
        self.log: list[Instruction] = []
        self.is_dead = False
        self._body = body
        self._index = index
        self._started = body.started_on(index)
        self._drawing: dict[int, tuple[RequestId, ...]] = {}
        left = lambda request: body.n_output[request] - instance.requests[request].n_drawn
        self._device = VirtualDevice(instance, cost, body.clock, self, left, on_drawn=self._drawn)

    def send(self, instructions: Instructions, descriptors: Sequence[int] = ()) -> None:
        for instruction in () if self.is_dead else instructions:
            self.log.append(instruction)
            self._carry_out(instruction)

    def kill(self) -> None:
        """As SIGKILL: the node hears of its end at this moment, after what it is doing."""
        if not self.is_dead:
            self.is_dead = True
            self._device.close()
            clock = self._body.clock
            clock.call_at(clock.now_s(), lambda: self._body.ended(self._index, "killed"))

    # the device's `CompletionPost`
    def done(self, completion: StepDone | CopyDone) -> None:
        if isinstance(completion, CopyDone):
            operation = OperationId(completion.operation)
            self._say(CopyCompleted(operation, completion.at_s, completion.error))
            return
        drawing = self._drawing.pop(completion.operation)
        finished = {request for request, _ in completion.finished}
        stopped = tuple(place for place, request in enumerate(drawing) if request in finished)
        operation = OperationId(completion.operation)
        self._say(StepCompleted(operation, completion.ends_s, (0,) * len(drawing), stopped))

    def _drawn(self, at_s: float, tokens: tuple[tuple[RequestId, int], ...]) -> None:
        """Every iteration but the last is reported when it ends, the last one with the end of the step."""
        if at_s < self._device.step_end_s:
            operation = next(iter(self._drawing))
            self._say(Drew(OperationId(operation), at_s, tuple(token for _, token in tokens)))

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case StepLaunch(operation, _, segments):
                started = self._started.pop(operation)
                self._device.start(started)
                chunks = started.operation.chunks  # type: ignore[union-attr]
                self._drawing[operation] = tuple(
                    chunk.request for chunk, s in zip(chunks, segments, strict=True) if s.draws
                )
            case WeightsLaunch() | PagingLaunch() | MoveLaunch() | FetchLaunch():
                self._device.start(self._started.pop(instruction.operation))
            case StopStep():
                self._device.interrupt()
            case StopCopy(operation):
                self._device.supersede(operation)
            case ReallocateArena(arena_bytes):
                self._body.soon(lambda: self._say(ArenaReallocated(arena_bytes)))
            case _:
                pass

    def _say(self, completion: ExecutorReport) -> None:
        if not self.is_dead:
            self._body.heard(self._index, (completion,))


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
    ) -> None:
        """An executor takes `start_s` until it is ready. `truth` gives the durations of a device's
        operations."""
        self.said: list[Report] = []
        self.clock = VirtualClock()
        self.n_output = n_output
        self.executors: list[VirtualExecutor] = []
        """All that were ever started."""
        self._start_s = start_s
        self._truth = truth or (lambda device: RooflineCost(device.facts, setup.host))
        self._tickets = itertools.count(1)
        self._started: dict[int, dict[int, Started]] = {}
        self.node = Node(setup, self.clock, self, self.emit)
        self.node.observers.append(self._observe)
        self.node.start()
        self.node.pump()

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

    def submit_at(self, request: Request) -> None:
        submit = Submit(request, prompt=(0,) * request.n_prompt, sampling=Sampling())
        self.clock.call_at(request.arrival_s, lambda: self._send(submit))

    def heard(self, index: InstanceId, completions: tuple[ExecutorReport, ...]) -> None:
        self.react(lambda: self.node.heard(index, completions))

    def ended(self, index: InstanceId, detail: str) -> None:
        self.react(lambda: self.node.ended(index, detail))

    def soon(self, call: Callable[[], None]) -> None:
        """Call at this moment, but not within what happens now."""
        self.clock.call_at(self.clock.now_s(), call)

    def close(self) -> None:
        """Give up the host memory of the node."""
        self.node.close()

    def react(self, call: Callable[[], None]) -> None:
        """One turn of the node's thread: handle `call`, then send what it causes. Override it to measure."""
        call()
        self.node.pump()

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
        self.clock.call_at(ready_s, lambda: executor._say(ExecutorReady()))
        return executor
