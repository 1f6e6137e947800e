"""Carries plans out on virtual time: the same instances, policies and metrics as the running engine, without
a device.

The simulator knows what an online scheduler cannot: how many tokens each request will draw
(`Arrival.n_output`), and how long steps and copies truly take (`truth`, and what `doubts` add to it). A
repeated step is one event; if another event interrupts it, its end moves to the end of the present iteration.
Events of equal time happen in the order in which they were caused.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from tokenmux.core.cost import CostModel, burst_ends_s
from tokenmux.core.errors import InternalError
from tokenmux.core.event import SUPERSEDED, Arrived, CopyDone, Event, ModelAdded, StepDone, Withdrawn
from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.core.plan import Activate, Channel, Compact, Step
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.core.started import Started
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.policy.pool.pool_policy import Move, Place, PoolPolicy, PoolView, Refuse
from tokenmux.simulator.doubts import SURE, Doubts
from tokenmux.workload.trace import Arrival

OnDone = Callable[[int, Started, Event], None]
"""Called for every completed operation with the instance's index, what was started, and how it ended."""


class Simulator:
    """A pool of instances on virtual time, as `tokenmux.scheduler.policy.pool.pool_policy.PoolView`.

    `truth` is one cost model for all instances, or one for each. An instance learns of a model of `models`
    when a request first brings it there; everything else is told by `apply`. Without a pool policy there is
    one instance.
    """

    def __init__(
        self,
        instances: Sequence[Instance],
        truth: CostModel | Sequence[CostModel],
        pool_policy: PoolPolicy | None = None,
        models: Mapping[ModelId, ModelFacts] | None = None,
        on_done: OnDone | None = None,
        doubts: Doubts = SURE,
    ) -> None:
        self.instances = instances
        self.now_s = 0.0
        self.refused: list[tuple[Request, str]] = []
        self.n_moves = 0
        self._truths = truth if isinstance(truth, Sequence) else [truth] * len(instances)
        self._pool_policy = pool_policy or _OneInstance()
        self._models = models or {}
        self._on_done = on_done
        self._doubts = doubts
        self._stepped: dict[int, ModelId] = {}
        """The model that stepped last on each instance."""
        self._heap: list[tuple[float, int, int, _StepEnd | _CopyEnd]] = []
        self._sequence = 0
        self._n_output: dict[RequestId, int] = {}
        self._steps: dict[int, tuple[Started, tuple[float, ...]]] = {}
        self._copies: list[dict[int, Started]] = [{} for _ in instances]
        self._targets: dict[RequestId, int] = {}
        self._sharers = _sharers_of_caches(instances)

    def facts(self, model: ModelId) -> ModelFacts:
        return self._models[model]

    def run(self, arrivals: Iterable[Arrival], until_s: float = inf) -> None:
        """Replay the arrivals (in order of time) until everything is finished, or until virtual time
        `until_s`."""
        coming = iter(arrivals)
        following = next(coming, None)
        while following is not None or self._heap:
            arrival_s = following.request.arrival_s if following else inf
            next_s = min(arrival_s, self._heap[0][0] if self._heap else inf)
            if next_s > until_s:
                return
            self.now_s = next_s
            if following is not None and arrival_s <= next_s:
                self._submit(following)
                following = next(coming, None)
            else:
                _, _, index, due = heappop(self._heap)
                self._complete(index, due)
        stuck = [request for instance in self.instances for request in instance.requests]
        if stuck:
            raise InternalError(
                f"simulation ended with {len(stuck)} requests unfinished, {stuck[0]} among them"
            )

    @property
    def steps_end_s(self) -> float:
        """When the last of the steps in flight will end; 0 if there are none."""
        return max((ends_s[-1] for _, ends_s in self._steps.values()), default=0.0)

    def apply(self, index: int, event: Event) -> None:
        """Give one instance an event, and carry out what is decided then, including moves to other
        instances."""
        pending = deque([(index, event)])
        while pending:
            index, event = pending.popleft()
            if isinstance(event, Arrived):
                self._introduce(index, event.request.model)
            instance = self.instances[index]
            instance.apply(event)
            for record, _ in instance.take_ended():
                self._n_output.pop(record.request.id, None)
                self._targets.pop(record.request.id, None)
                self._pool_policy.on_left(index, record.request)
            for leaver in instance.take_withdrawn():
                self._pool_policy.on_left(index, leaver.request)
                pending.append((self._targets.pop(leaver.request.id), leaver))
            instance.take_phases()
            for move in self._pool_policy.on_event(index, event, self):
                self._targets[move.request] = move.target
                self.n_moves += 1
                pending.append((move.source, Withdrawn(self.now_s, move.request)))
            if instance.interrupted and index in self._steps:
                self._interrupt(index)
            for operation in instance.take_superseded():
                self._push(self.now_s, index, _CopyEnd(self._copies[index][operation], SUPERSEDED))
            self._decide(index)

    def _submit(self, arrival: Arrival) -> None:
        request = arrival.request
        match self._pool_policy.place(request, self):
            case Refuse(reason):
                self.refused.append((request, reason))
            case Place(index):
                self._n_output[request.id] = arrival.n_output
                self.apply(index, Arrived(request.arrival_s, request))

    def _introduce(self, index: int, model: ModelId) -> None:
        instance = self.instances[index]
        if model not in instance.models and model in self._models:
            instance.apply(ModelAdded(self.now_s, self._models[model]))

    def _decide(self, index: int) -> None:
        for started in self.instances[index].decide(self.now_s):
            self._start(index, started)

    def _start(self, index: int, started: Started) -> None:
        truth = self._truths[index]
        operation = started.operation
        if isinstance(operation, Step):
            assert started.model is not None
            repeat = min(operation.repeat, self._least_left(index, operation))
            switches = self._stepped.get(index) != started.model.id
            self._stepped[index] = started.model.id
            ends_s = burst_ends_s(truth, started.model, started.work, repeat, self.now_s)
            ends_s = self._doubts.stretched(ends_s, self.now_s, switches, started.work.beside_copy)
            self._steps[index] = (started, ends_s)
            self._push(ends_s[-1], index, _StepEnd(started.id, len(ends_s)))
            return
        if isinstance(operation, Compact):
            seconds = truth.move_s(started.n_bytes)
        else:
            seconds = truth.copy_s(started.channel, started.n_bytes)
            if isinstance(operation, Activate):
                seconds += self._doubts.activation_s
        self._copies[index][started.id] = started
        self._push(self.now_s + seconds, index, _CopyEnd(started))

    def _least_left(self, index: int, step: Step) -> int:
        """How many tokens remain of the first of the step's requests to finish."""
        requests = self.instances[index].requests
        return min(self._n_output[chunk.request] - requests[chunk.request].n_drawn for chunk in step.chunks)

    def _interrupt(self, index: int) -> None:
        started, ends_s = self._steps[index]
        n = next(i for i, end_s in enumerate(ends_s) if end_s >= self.now_s) + 1
        if n < len(ends_s):
            self._steps[index] = (started, ends_s[:n])
            self._push(ends_s[n - 1], index, _StepEnd(started.id, n))

    def _complete(self, index: int, due: "_StepEnd | _CopyEnd") -> None:
        if isinstance(due, _CopyEnd):
            started = due.started
            if self._copies[index].pop(started.id, None) is None:
                return
            self._finish(index, started, CopyDone(self.now_s, started.id, due.error))
            self._tell_sharers(index, started)
            return
        step, ends_s = self._steps.get(index, (None, ()))
        if step is not None and step.id == due.operation and len(ends_s) == due.n_iterations:
            del self._steps[index]
            self._finish(index, step, self._step_done(index, step, ends_s))

    def _tell_sharers(self, index: int, started: Started) -> None:
        """Tell instances that share the host cache: a fetch has brought images, or a copy has ended and no
        longer holds any, so that others may fetch."""
        is_fetch = started.channel is Channel.FETCH
        if is_fetch or isinstance(started.operation, Activate):
            for sharer in self._sharers[index]:
                if is_fetch or self.instances[sharer].any_on_disk:
                    self._decide(sharer)

    def _finish(self, index: int, started: Started, event: Event) -> None:
        if self._on_done:
            self._on_done(index, started, event)
        self.apply(index, event)

    def _step_done(self, index: int, started: Started, ends_s: tuple[float, ...]) -> StepDone:
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

    def _push(self, at_s: float, index: int, due: "_StepEnd | _CopyEnd") -> None:
        heappush(self._heap, (at_s, self._sequence, index, due))
        self._sequence += 1


@dataclass(frozen=True, slots=True)
class _StepEnd:
    """The expected end of a step with this many iterations, unless it is interrupted."""

    operation: int
    n_iterations: int


@dataclass(frozen=True, slots=True)
class _CopyEnd:
    """The end of a copy, a move or a fetch, unless it is superseded."""

    started: Started
    error: str = ""


class _OneInstance:
    """The pool policy of a single instance."""

    name = "one"

    def place(self, request: Request, pool: PoolView) -> Place:
        return Place(0)

    def on_event(self, index: int, event: Event, pool: PoolView) -> tuple[Move, ...]:
        return ()

    def on_left(self, index: int, request: Request) -> None:
        """Do nothing."""


def _sharers_of_caches(instances: Sequence[Instance]) -> list[list[int]]:
    """For each instance, the others with the same host cache: they may wait for what it fetches."""
    by_cache: dict[int, list[int]] = {}
    for index, instance in enumerate(instances):
        by_cache.setdefault(id(instance.ledger.cache), []).append(index)
    return [
        [other for other in by_cache[id(instance.ledger.cache)] if other != index]
        for index, instance in enumerate(instances)
    ]
