"""The real engine on virtual time, for tests and benchmarks: no threads, no weights, no waiting."""

from collections.abc import Callable, Mapping

from tokenmux.core.cost import RooflineCost
from tokenmux.core.facts import HostFacts, ModelFacts, ModelId
from tokenmux.core.request import Request, RequestId
from tokenmux.core.sampling import Sampling
from tokenmux.device.device_protocol import OperationDone
from tokenmux.device.null import NullDevice, VirtualClock
from tokenmux.executor.engine import Engine
from tokenmux.executor.request_content import Content
from tokenmux.messages.commands import Command, Submit
from tokenmux.messages.reports import Report
from tokenmux.scheduler.instance.instance import Instance

HOST = HostFacts(cache_bytes=200 * 10**9, fetch_bytes_per_s=8e9)


class NoWeights:
    """The null device computes nothing, so nothing is bound; `log` records what would have been."""

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
        self.weights = NoWeights()
        self.contents: dict[RequestId, Content] = {}
        self.clock = VirtualClock()
        self.instance = instance
        self.engine = Engine(instance, self.clock, self.weights, self.emit, self.contents)
        cost = RooflineCost(instance.device, HOST)
        left = lambda request: n_output[request] - instance.requests[request].n_drawn
        self.device = NullDevice(instance, cost, self.clock, self, left)
        self.engine.attach(self.device)

    def emit(self, messages: list[Report]) -> None:
        self.said += messages

    def react(self, call: Callable[[], None]) -> None:
        """One turn of the engine's thread: handle `call`, then send what it causes."""
        call()
        self.engine.pump()

    def send(self, message: Command) -> None:
        self.react(lambda: self.engine.receive(message))

    def submit_at(self, request: Request) -> None:
        submit = Submit(request, prompt=(0,) * request.n_prompt, sampling=Sampling())
        self.clock.call_at(request.arrival_s, lambda: self.send(submit))

    # the device's `Post`
    def done(self, completion: OperationDone) -> None:
        self.react(lambda: self.engine.done(completion))

    def drawn(self, at_s: float, tokens: tuple[tuple[RequestId, int], ...]) -> None:
        self.react(lambda: self.engine.drawn(at_s, tokens))

    def progress(self, operation: int, share: float) -> None:
        raise AssertionError("the null device reports no progress")

    def broken(self, operation: int, error: BaseException) -> None:
        raise error
