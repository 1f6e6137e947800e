"""Carries plans out on virtual time: the same instances, policies and metrics as the running engine, and no device.

The simulator knows what an online scheduler cannot: how many tokens each request will draw (`Arrival.n_output`), and how long
steps and copies truly take (`truth`). A repeated step is one event; when an event interrupts it, its end moves to the end of
the iteration that is under way.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from tokenmux.engine.core.cost import CostModel, burst_ends_s
from tokenmux.engine.core.errors import InternalError
from tokenmux.engine.core.event import Arrived, CopyDone, Event, StepDone
from tokenmux.engine.core.plan import Compact, Step
from tokenmux.engine.core.request import FinishReason, Request, RequestId
from tokenmux.engine.instance.instance import Instance
from tokenmux.engine.instance.started import Started


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a workload. It stops by itself after `n_output` tokens."""

    request: Request
    n_output: int


class Simulator:
    """Virtual time over a set of instances. `place` chooses the instance of an arriving request, by index."""

    def __init__(
        self, instances: Sequence[Instance], truth: CostModel, place: Callable[[Request], int] = lambda _: 0
    ) -> None:
        self.instances = instances
        self.now_s = 0.0
        self._truth = truth
        self._place = place
        self._heap: list[tuple[float, int, int, Event | _StepEnd]] = []
        self._sequence = 0
        self._n_output: dict[RequestId, int] = {}
        self._steps: dict[int, tuple[Started, tuple[float, ...]]] = {}

    def run(self, arrivals: Iterable[Arrival], until_s: float = float("inf")) -> None:
        """Replay the arrivals (in order of time) until everything is finished, or until virtual time `until_s`."""
        coming = iter(arrivals)
        following = next(coming, None)
        while following is not None or self._heap:
            arrival_s = following.request.arrival_s if following else float("inf")
            next_s = min(arrival_s, self._heap[0][0] if self._heap else float("inf"))
            if next_s > until_s:
                break
            self.now_s = next_s
            if following is not None and arrival_s <= next_s:
                index = self._place(following.request)
                self._n_output[following.request.id] = following.n_output
                self.apply(index, Arrived(arrival_s, following.request))
                following = next(coming, None)
                continue
            _, _, index, due = heappop(self._heap)
            if isinstance(due, _StepEnd):
                done = self._step_done(index, due)
                if done is not None:
                    self.apply(index, done)
            else:
                self.apply(index, due)
        if until_s == float("inf"):
            stuck = [request for instance in self.instances for request in instance.requests]
            if stuck:
                raise InternalError(
                    f"simulation ended with {len(stuck)} requests unfinished, {stuck[0]} among them"
                )

    def apply(self, index: int, event: Event) -> None:
        """Give one instance an event, and carry out what it then decides."""
        instance = self.instances[index]
        instance.apply(event)
        for record, _ in instance.take_ended():
            self._n_output.pop(record.request.id, None)
        instance.take_phases()
        if instance.interrupted and index in self._steps:
            self._interrupt(index)
        for started in instance.decide(self.now_s):
            self._start(index, started)

    def _start(self, index: int, started: Started) -> None:
        operation = started.operation
        if isinstance(operation, Step):
            assert started.model is not None
            repeat = min([operation.repeat, *self._left(index, operation)])
            ends_s = burst_ends_s(self._truth, started.model, started.work, repeat, self.now_s)
            self._steps[index] = (started, ends_s)
            self._push(ends_s[-1], index, _StepEnd(started.id, len(ends_s)))
            return
        if isinstance(operation, Compact):
            seconds = self._truth.move_s(started.n_bytes)
        else:
            seconds = self._truth.copy_s(started.channel, started.n_bytes)
        self._push(self.now_s + seconds, index, CopyDone(self.now_s + seconds, started.id))

    def _left(self, index: int, step: Step) -> list[int]:
        """How many tokens each request of the step will still draw, as far as that can end the step."""
        requests = self.instances[index].requests
        return [self._n_output[chunk.request] - requests[chunk.request].n_drawn for chunk in step.chunks]

    def _interrupt(self, index: int) -> None:
        started, ends_s = self._steps[index]
        n = next(i for i, end_s in enumerate(ends_s) if end_s >= self.now_s) + 1
        if n < len(ends_s):
            self._steps[index] = (started, ends_s[:n])
            self._push(ends_s[n - 1], index, _StepEnd(started.id, n))

    def _step_done(self, index: int, due: "_StepEnd") -> StepDone | None:
        """The completion, unless an interruption has moved it to an earlier time."""
        started, ends_s = self._steps.get(index, (None, ()))
        if started is None or started.id != due.operation or len(ends_s) != due.n_iterations:
            return None
        del self._steps[index]
        step = started.operation
        assert isinstance(step, Step)
        requests = self.instances[index].requests
        finished = []
        for chunk in step.chunks:
            request = requests[chunk.request]
            draws = len(ends_s) if chunk.start + chunk.n_tokens == request.n_tokens else 0
            if draws and request.n_drawn + draws >= self._n_output.get(chunk.request, 0):
                finished.append((chunk.request, FinishReason.STOP))
        return StepDone(ends_s[-1], started.id, ends_s, tuple(finished))

    def _push(self, at_s: float, index: int, due: "Event | _StepEnd") -> None:
        heappush(self._heap, (at_s, self._sequence, index, due))
        self._sequence += 1


@dataclass(frozen=True, slots=True)
class _StepEnd:
    """A step is expected to complete with this many iterations, unless it is interrupted before."""

    operation: int
    n_iterations: int
