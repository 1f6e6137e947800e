"""A worker's engine in the caller's thread, on a device with real weights.

What a call begins is done when it returns, so that a benchmark's clock stops at the right event.
"""

from collections.abc import Callable
from queue import SimpleQueue

from tokenmux.core.clock import Clock
from tokenmux.core.facts import DeviceFacts, HostFacts, ModelId
from tokenmux.core.phases import Residency
from tokenmux.core.request import RequestId
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.device.cpu import CpuDevice
from tokenmux.device.device_protocol import Device, Host, OperationDone, Post
from tokenmux.executor.engine import Engine
from tokenmux.executor.model_host import ModelHost
from tokenmux.executor.request_content import Content
from tokenmux.messages.commands import Command, Load, Order, Register, Ticket, Unload
from tokenmux.messages.reports import Report
from tokenmux.models.catalogue.entry import Entry
from tokenmux.processes.monotonic_clock import MonotonicClock
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.memory.ledger import Ledger
from tokenmux.scheduler.policy.slack import SlackPolicy

WAIT_S = 120.0
"""No operation of a benchmark takes longer than this."""

MakeDevice = Callable[[DeviceFacts, Ledger, Clock, Post, Host], Device]


class DrivenEngine:
    """The engine, its device and its models. As the device's `Post` it keeps events until `turn` takes
    them."""

    def __init__(self, facts: DeviceFacts, host: HostFacts, make_device: MakeDevice = CpuDevice) -> None:
        contents: dict[RequestId, Content] = {}
        self._inbox: SimpleQueue[Callable[[Engine], None]] = SimpleQueue()
        self.said: list[Report] = []
        self.clock = MonotonicClock()
        self.instance = Instance(facts, HostCache(host.cache_bytes), SlackPolicy(), RooflineCost(facts, host))
        self.models = ModelHost(self.instance, self.clock, contents)
        self.device = make_device(facts, self.instance.ledger, self.clock, self, self.models)
        self.engine = Engine(self.instance, self.device, self.clock, self.models, self.said.extend, contents)

    def tell(self, command: Command) -> None:
        """Enter a command and begin what it asks for."""
        self.engine.receive(Order(Ticket(0), command))
        self.engine.pump()

    def register(self, entry: Entry) -> None:
        """Register the model and wait until its weights are in host memory."""
        self.tell(Register(entry.facts, str(entry.path)))
        self.run_until(entry.facts.id, Residency.HOST)

    def load(self, model: ModelId) -> None:
        """Bring the model onto the device."""
        self.tell(Load(model))
        self.run_until(model, Residency.RESIDENT)

    def unload(self, model: ModelId) -> None:
        """Take the model off the device."""
        self.tell(Unload(model))
        self.run_until(model, Residency.HOST)

    def run_until(self, model: ModelId, residency: Residency) -> None:
        """Take turns until the model's weights are there."""
        while self.instance.models[model].residency is not residency:
            self.turn()

    def turn(self) -> None:
        """Wait for one event of the device and carry out what follows from it."""
        self._inbox.get(timeout=WAIT_S)(self.engine)
        self.engine.pump()

    def close(self) -> None:
        self.device.close()

    # the device's `Post`
    def done(self, completion: OperationDone) -> None:
        self._inbox.put(lambda engine: engine.done(completion))

    def progress(self, operation: int, share: float) -> None:
        self._inbox.put(lambda engine: engine.progress(operation, share))

    def drawn(self, at_s: float, tokens: tuple[tuple[RequestId, int], ...]) -> None:
        self._inbox.put(lambda engine: engine.drawn(at_s, tokens))

    def broken(self, operation: int, error: BaseException) -> None:
        self._inbox.put(lambda _engine: _raise(error))


def _raise(error: BaseException) -> None:
    raise error
