"""Carries plans out on virtual time: the same instances, policies and metrics as the running engine, on
virtual devices.

The simulator knows what an online scheduler cannot: how many tokens each request will draw
(`Arrival.n_output`), and how long steps and copies truly take (`truth`, and what `doubts` add to it). Events
of equal time happen in the order in which they were caused.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from typing import assert_never

from tokenmux.core.cost import CostModel
from tokenmux.core.effects import (
    CopyEnded,
    Effects,
    Interrupt,
    ModelLoaded,
    RequestEnded,
    RequestEntered,
    RequestLeft,
    ResizeReady,
    StepEnded,
    Supersede,
)
from tokenmux.core.errors import InternalError
from tokenmux.core.event import (
    Arrived,
    CopyDone,
    Event,
    ModelAdded,
    ModelWanted,
    Paused,
    Resized,
    StepDone,
    Withdrawn,
)
from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.core.phases import PhaseChanged
from tokenmux.core.plan import Discard, Drop, Evict
from tokenmux.core.record import RequestRecord
from tokenmux.core.request import Request, RequestId
from tokenmux.core.started import (
    StartedActivation,
    StartedCompaction,
    StartedFetch,
    StartedPageIn,
    StartedPageOut,
    StartedStep,
)
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.policy.pool.pool_policy import Move, Place, PoolPolicy, PoolView, Refuse
from tokenmux.simulator.doubts import SURE, Doubts
from tokenmux.simulator.virtual_clock import VirtualClock
from tokenmux.simulator.virtual_device import VirtualDevice
from tokenmux.workload.trace import Arrival

OnEffects = Callable[[int, float, Effects], None]
"""Called with all effects before they are carried out: the instance's index, the time in seconds, the
effects."""


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
        on_effects: OnEffects | None = None,
        doubts: Doubts = SURE,
    ) -> None:
        self.instances = list(instances)
        self.clock = VirtualClock()
        self.records: list[RequestRecord] = []
        """Records of all ended requests, in the order of their ends."""
        self.refused: list[tuple[Request, str]] = []
        self.n_moves = 0
        self.truths = truth if isinstance(truth, Sequence) else [truth] * len(instances)
        self._pool_policy = pool_policy or _OneInstance()
        self._models = models or {}
        self._on_effects = on_effects
        self._doubts = doubts
        self._n_output: dict[RequestId, int] = {}
        self._targets: dict[RequestId, int] = {}
        """Target instances of requests that are being withdrawn."""
        self._pending: deque[tuple[int, Event]] = deque()
        """Events of this moment, with the index of their instance."""
        self._loaded: deque[tuple[int, StartedActivation | StartedFetch]] = deque()
        """Loads that have ended at this moment and of which other instances have not been told yet."""
        self._devices = [self._device(index) for index in range(len(instances))]
        self._sharers = _sharers_of_caches(self.instances)

    @property
    def now_s(self) -> float:
        return self.clock.now_s()

    def facts(self, model: ModelId) -> ModelFacts:
        return self._models[model]

    def run(self, arrivals: Iterable[Arrival], until_s: float = inf) -> None:
        """Replay the arrivals (in order of time) until everything is finished, or until virtual time
        `until_s`."""
        coming = iter(arrivals)
        following = next(coming, None)
        while True:
            arrival_s = following.request.arrival_s if following else inf
            next_s = self.clock.next_s
            if following is None and next_s == inf:
                break
            if min(arrival_s, next_s) > until_s:
                return
            if following is not None and arrival_s <= next_s:
                self.clock.pass_to(arrival_s)
                self._submit(following)
                following = next(coming, None)
            else:
                self.clock.run_next()
        stuck = [request for instance in self.instances for request in instance.requests]
        if stuck:
            raise InternalError(
                f"simulation ended with {len(stuck)} requests unfinished, {stuck[0]} among them"
            )

    @property
    def steps_end_s(self) -> float:
        """When the last of the steps in flight will end; 0 if there are none."""
        return max(device.step_end_s for device in self._devices)

    def apply(self, index: int, event: Event) -> None:
        """Give one instance an event, and carry out what is decided then, including moves to other
        instances."""
        self._pending.append((index, event))
        while self._pending or self._loaded:
            if self._pending:
                self._apply_one(*self._pending.popleft())
            else:
                self._tell_sharers(*self._loaded.popleft())

    def replace(self, index: int, instance: Instance) -> None:
        """The device of instance `index` is lost, and its KV with it: a new `instance` takes its place.

        Its requests continue there with the tokens drawn so far, as after a worker that broke.
        """
        lost, device = self.instances[index], self._devices[index]
        drawn = device.n_drawn()
        device.close()
        self._carry_out(index, lost.abandon())
        self.instances[index], self._devices[index] = instance, self._device(index, instance)
        self._sharers = _sharers_of_caches(self.instances)
        for model in lost.models.values():
            self.apply(index, ModelAdded(self.now_s, model.facts))
            if model.pinned:
                self.apply(index, ModelWanted(self.now_s, model.facts.id, pinned=True))
        for request in lost.requests.values():
            target = self._targets.pop(request.id, index)
            if target != index:
                self._pool_policy.on_left(index, request.request)
            n_delivered = request.n_drawn + drawn.get(request.id, 0)
            history = request.history(self.now_s)
            self.apply(target, Arrived(self.now_s, request.request, n_delivered, history=history))
            if request.is_paused:
                self.apply(target, Paused(self.now_s, request.id))

    def _device(self, index: int, instance: Instance | None = None) -> VirtualDevice:
        instance = instance or self.instances[index]
        return VirtualDevice(
            instance,
            self.truths[index],
            self.clock,
            _Completions(self, index),
            partial(self._left, instance),
            doubts=self._doubts,
        )

    def _left(self, instance: Instance, request: RequestId) -> int:
        """How many tokens the request has yet to draw."""
        return self._n_output.get(request, 0) - instance.requests[request].n_drawn

    def _submit(self, arrival: Arrival) -> None:
        request = arrival.request
        match self._pool_policy.place(request, self):
            case Refuse(reason):
                self.refused.append((request, reason))
            case Place(index):
                self._n_output[request.id] = arrival.n_output
                self.apply(index, Arrived(request.arrival_s, request))

    def _apply_one(self, index: int, event: Event) -> None:
        instance = self.instances[index]
        if isinstance(event, Arrived):
            self._introduce(index, event.request.model)
        self._carry_out(index, instance.apply(event))
        for move in self._pool_policy.on_event(index, event, self):
            self._targets[move.request] = move.target
            self.n_moves += 1
            self._pending.append((move.source, Withdrawn(self.now_s, move.request)))
        self._carry_out(index, instance.decide(self.now_s))

    def _introduce(self, index: int, model: ModelId) -> None:
        instance = self.instances[index]
        if model not in instance.models and model in self._models:
            self._carry_out(index, instance.apply(ModelAdded(self.now_s, self._models[model])))

    def _carry_out(self, index: int, effects: Effects) -> None:
        if self._on_effects and effects:
            self._on_effects(index, self.now_s, effects)
        device = self._devices[index]
        for effect in effects:
            match effect:
                case StartedStep() | StartedActivation() | StartedFetch():
                    device.start(effect)
                case StartedPageIn() | StartedPageOut() | StartedCompaction():
                    device.start(effect)
                case Interrupt():
                    device.interrupt()
                case Supersede(operation):
                    device.supersede(operation)
                case RequestEnded(record):
                    self.records.append(record)
                    self._n_output.pop(record.request.id, None)
                    self._targets.pop(record.request.id, None)
                    self._pool_policy.on_left(index, record.request)
                case RequestLeft(arrival):
                    self._pool_policy.on_left(index, arrival.request)
                    self._pending.append((self._targets.pop(arrival.request.id), arrival))
                case ResizeReady(arena_bytes):
                    device.resize(arena_bytes)
                    self._pending.append((index, Resized(self.now_s, arena_bytes)))
                case CopyEnded(StartedActivation() | StartedFetch() as load):
                    self._loaded.append((index, load))
                case CopyEnded() | StepEnded() | ModelLoaded() | RequestEntered() | PhaseChanged():
                    pass
                case Evict() | Drop() | Discard():
                    pass
                case _:
                    assert_never(effect)

    def _tell_sharers(self, index: int, load: StartedActivation | StartedFetch) -> None:
        """Ask others on the same host again, since the host cache has changed.

        A fetch brought images for which they may wait. An activation that ended no longer holds images, so
        that they may fetch.
        """
        for sharer in self._sharers[index]:
            if isinstance(load, StartedFetch) or self.instances[sharer].any_on_disk:
                self._carry_out(sharer, self.instances[sharer].decide(self.now_s))


class _Completions:
    """Receives the completions of one device."""

    def __init__(self, simulator: Simulator, index: int) -> None:
        self._simulator = simulator
        self._index = index

    def done(self, completion: StepDone | CopyDone) -> None:
        self._simulator.apply(self._index, completion)


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
