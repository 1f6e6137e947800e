"""The running engine on virtual time, for tests and benchmarks: no threads, no weights, no waiting."""

import itertools
from collections.abc import Callable, Mapping

import msgspec

from tokenmux.core.effects import Effects
from tokenmux.core.facts import HostFacts, ModelFacts, ModelId
from tokenmux.core.request import Request, RequestId
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.core.sampling import Sampling
from tokenmux.device.device_protocol import Device, OperationDone
from tokenmux.executor.engine import Engine
from tokenmux.executor.request_content import Content
from tokenmux.messages.commands import Command, Order, Register, Submit, Ticket
from tokenmux.messages.reports import Report
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.simulator.virtual_clock import VirtualClock
from tokenmux.simulator.virtual_device import VirtualDevice

HOST = HostFacts(cache_bytes=200 * 10**9, fetch_bytes_per_s=8e9)


class NoWeights:
    """A virtual device computes nothing, so there is nothing to bind; `log` says what would have been."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ModelId]] = []

    def add(self, facts: ModelFacts, path: str) -> None:
        self.log.append(("add", facts.id))

    def remove(self, model: ModelId) -> None:
        self.log.append(("remove", model))

    def bind(self, model: ModelFacts) -> None:
        self.log.append(("bind", model.id))

    def unbind(self, model: ModelId) -> None:
        self.log.append(("unbind", model))


class EngineOnVirtualTime:
    """The engine's single thread, played by the virtual clock. `n_output` says after how many tokens a
    request stops by itself."""

    def __init__(self, instance: Instance, n_output: Mapping[RequestId, int]) -> None:
        self.said: list[Report] = []
        self._tickets = itertools.count(1)
        self.clock = VirtualClock()
        self._n_output = n_output
        self._registered: dict[ModelId, Register] = {}
        self._begin(instance)

    def make_device(self) -> Device:
        """The device of `self.instance`."""
        instance, n_output = self.instance, self._n_output
        cost = RooflineCost(instance.device, HOST)
        left = lambda request: n_output[request] - instance.requests[request].n_drawn
        return VirtualDevice(instance, cost, self.clock, self, left, on_drawn=self.drawn)

    def replace(self, instance: Instance) -> None:
        """The worker is lost: another one begins with `instance`, and is sent what its predecessor had not
        finished."""
        self.device.close()
        unfinished = [
            (content, self.instance.requests[request]) for request, content in self.contents.items()
        ]
        self._begin(instance)
        orders: list[Command] = list(self._registered.values())
        for content, request in unfinished:
            if request.to_end is None:
                drawn = content.token_ids[content.submit.request.n_prompt :]
                history = request.history(self.clock.now_s())
                orders.append(
                    msgspec.structs.replace(content.submit, delivered=tuple(drawn), history=history)
                )
        for order in orders:
            self.engine.receive(Order(Ticket(next(self._tickets)), order))
        self.engine.pump()

    def _begin(self, instance: Instance) -> None:
        self.instance = instance
        self.weights = NoWeights()
        self.contents: dict[RequestId, Content] = {}
        self.device = self.make_device()
        self.engine = Engine(instance, self.device, self.clock, self.weights, self.emit, self.contents)
        self.engine.observers.append(self.observe)

    def observe(self, at_s: float, effects: Effects) -> None:
        """Called with all effects before they are carried out. Override it."""

    def emit(self, messages: list[Report]) -> None:
        self.said += messages

    def react(self, call: Callable[[], None]) -> None:
        """One turn of the engine's thread: handle `call`, then send what it causes."""
        call()
        self.engine.pump()

    def send(self, command: Command) -> Ticket:
        """Have the engine receive a command; returns its ticket."""
        if isinstance(command, Register):
            self._registered[command.facts.id] = command
        ticket = Ticket(next(self._tickets))
        self._order(ticket, command)
        return ticket

    def _order(self, ticket: Ticket, command: Command) -> None:
        self.react(lambda: self.engine.receive(Order(ticket, command)))

    def submit_at(self, request: Request) -> None:
        submit = Submit(request, prompt=(0,) * request.n_prompt, sampling=Sampling())
        self.clock.call_at(request.arrival_s, lambda: self._order(Ticket(next(self._tickets)), submit))

    # the device's `Post`
    def done(self, completion: OperationDone) -> None:
        self.react(lambda: self.engine.done(completion))

    def drawn(self, at_s: float, tokens: tuple[tuple[RequestId, int], ...]) -> None:
        self.react(lambda: self.engine.drawn(at_s, tokens))

    def progress(self, operation: int, share: float) -> None:
        raise AssertionError("a virtual device reports no progress")

    def broken(self, operation: int, error: BaseException) -> None:
        raise error
