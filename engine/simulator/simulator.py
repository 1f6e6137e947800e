"""Carries plans out on virtual time: the same instances, policies and metrics as the running engine, on
virtual devices.

The simulator knows what an online scheduler cannot: how many tokens each request will draw
(`Arrival.n_output`), and how long steps and copies truly take (`truth`, and what `doubts` add to it). Events
of equal time happen in the order in which they were caused.
"""

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
    PrefixTaken,
    RequestEnded,
    RequestEntered,
    RequestLeft,
    ResizeReady,
    StepEnded,
    Supersede,
)
from tokenmux.core.errors import InternalError
from tokenmux.core.event import Arrived, CopyDone, Event, Resized, StepDone
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
from tokenmux.scheduler.policy.pool.one_instance import OneInstance
from tokenmux.scheduler.policy.pool.pool_policy import PoolPolicy, Refuse
from tokenmux.scheduler.pool.pool import Pool
from tokenmux.simulator.doubts import SURE, Doubts
from tokenmux.simulator.virtual_clock import VirtualClock
from tokenmux.simulator.virtual_device import VirtualDevice
from tokenmux.workload.trace import Arrival

OnEffects = Callable[[int, float, Effects], None]
"""Called with all effects before they are carried out: the instance's index, the time in seconds, the
effects."""


class Simulator:
    """A pool of instances on virtual time, as `tokenmux.scheduler.pool.pool.PoolBody`.

    `truth` is one cost model for all instances, or one for each. An instance learns of a model of `models`
    when a request first brings it there; everything else is told by `apply`. Without a pool policy there is
    one instance. What changes the pool itself goes to `pool`, then `pool.settle()`; what changes its devices
    to `replace`, `add` and `remove`.
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
        self.clock = VirtualClock()
        self.records: list[RequestRecord] = []
        """Records of all ended requests, in the order of their ends."""
        self.refused: list[tuple[Request, str]] = []
        self.truths = list(truth) if isinstance(truth, Sequence) else [truth] * len(instances)
        self.pool = Pool(
            instances, pool_policy or OneInstance(), self, self.clock, models, n_tokens=self._n_needed
        )
        self._on_effects = on_effects
        self._doubts = doubts
        self._n_output: dict[RequestId, int] = {}
        self._devices = [self._device(index, instance) for index, instance in enumerate(instances)]

    @property
    def now_s(self) -> float:
        return self.clock.now_s()

    @property
    def instances(self) -> Sequence[Instance]:
        return self.pool.instances

    @property
    def n_moves(self) -> int:
        return self.pool.n_moves

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
        self.pool.apply(index, event)
        self.pool.settle()

    def replace(self, index: int, instance: Instance) -> None:
        """The device of instance `index` is lost, and its KV with it: a new `instance` takes its place.

        Its requests go on there or elsewhere, with the tokens drawn so far.
        """
        device = self._devices[index]
        step = device.step_so_far()
        device.close()
        self._devices[index] = self._device(index, instance)
        self.pool.lose(index, instance, step)
        self.pool.settle()

    def add(self, instance: Instance, truth: CostModel, *, held: bool = False) -> int:
        """Add an instance, whose operations take as long as `truth` says. Returns its index. It is `held`
        until its device is there."""
        self.truths.append(truth)
        self._devices.append(self._device(len(self._devices), instance))
        index = self.pool.add(instance, held=held)
        self.pool.settle()
        return index

    def remove(self, index: int) -> None:
        """Take an empty instance and its device away."""
        self.pool.remove(index)
        self._devices[index].close()
        self.pool.settle()

    def carry_out(self, index: int, effects: Effects) -> None:
        if self._on_effects:
            self._on_effects(index, self.now_s, effects)
        device = self._devices[index]
        for effect in effects:
            match effect:
                case StartedStep():
                    device.start(effect)
                case StepEnded() | PhaseChanged():
                    pass
                case StartedActivation() | StartedFetch():
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
                case ResizeReady(arena_bytes):
                    device.resize(arena_bytes)
                case CopyEnded() | ModelLoaded() | RequestEntered() | RequestLeft():
                    pass
                case PrefixTaken() | Evict() | Drop() | Discard():
                    pass
                case _:
                    assert_never(effect)

    def _device(self, index: int, instance: Instance) -> VirtualDevice:
        return VirtualDevice(
            instance,
            self.truths[index],
            self.clock,
            _Completions(self, index),
            partial(self._n_left, instance),
            doubts=self._doubts,
        )

    def _n_needed(self, request: Request) -> int:
        """Number of tokens that the request will have, prompt and output."""
        return request.n_prompt + self._n_output.get(request.id, request.max_tokens)

    def _n_left(self, instance: Instance, request: RequestId) -> int:
        """How many tokens the request has yet to draw."""
        return self._n_output.get(request, 0) - instance.requests[request].n_drawn

    def _submit(self, arrival: Arrival) -> None:
        request = arrival.request
        self._n_output[request.id] = arrival.n_output
        answer = self.pool.submit(Arrived(request.arrival_s, request))
        if isinstance(answer, Refuse):
            del self._n_output[request.id]
            self.refused.append((request, answer.reason))
        elif request.expires_s < inf:
            self.clock.call_at(request.expires_s, self._expire)
        self.pool.settle()

    def _expire(self) -> None:
        self.pool.expire()
        self.pool.settle()


class _Completions:
    """Receives the completions of one device."""

    def __init__(self, simulator: Simulator, index: int) -> None:
        self._simulator = simulator
        self._index = index

    def done(self, completion: StepDone | CopyDone | Resized) -> None:
        self._simulator.apply(self._index, completion)
