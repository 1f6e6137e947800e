"""The state machine of one instance: events in, decisions out; synchronous, and the same for the engine and
the simulator.

    body ── apply(event) ─▶ state, ledger ──▶ policy.on_event ──────────────────┐
    body ── decide(now) ──▶ policy.plan for every free channel ──▶ validated ───┤
    body ◀── effects ◀── metrics count them ◀───────────────────────────────────┘

A body (the engine or the simulator) carries the effects out in order (`tokenmux.core.effects`) and says when
an operation completed. The instance never waits, reads no clock and touches no device. What a policy plans is
checked against the ledger, and refused loudly if illegal.
"""

from collections.abc import Container, Iterable, Sequence
from functools import partial

from tokenmux.core.cost import CostModel
from tokenmux.core.effects import Effects
from tokenmux.core.event import (
    Arrived,
    Cancelled,
    CopyDone,
    Event,
    ModelAdded,
    ModelRemoved,
    ModelWanted,
    Paused,
    ResizeAsked,
    Resized,
    Resumed,
    StepDone,
    Withdrawn,
)
from tokenmux.core.facts import DeviceFacts, ImageId, ModelFacts, ModelId
from tokenmux.core.plan import IDLE, Channel, Chunk, Operation, Step
from tokenmux.core.prefix import NOTHING_KNOWN, KnownPrefix
from tokenmux.core.request import DEFAULT_LEVEL, Request, RequestId, ServiceLevel
from tokenmux.scheduler.instance import (
    claims,
    complete,
    immediate_actions,
    leaving,
    operator_wishes,
    requests,
    resizing,
)
from tokenmux.scheduler.instance.begin import begin
from tokenmux.scheduler.instance.live_state import LiveState
from tokenmux.scheduler.instance.superseding import Superseding
from tokenmux.scheduler.memory.arena import aligned
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.memory.host_kv import HostKv
from tokenmux.scheduler.memory.ledger import Ledger
from tokenmux.scheduler.metrics.counters import Metrics
from tokenmux.scheduler.metrics.counting import count
from tokenmux.scheduler.policy import drain
from tokenmux.scheduler.policy.instance_policy import Fit, InstancePolicy, LoadsInOrder, MakesWay

_CHANNELS = tuple(Channel)


class Instance:
    """Decides for one execution unit; a `tokenmux.scheduler.policy.instance_policy.InstanceView`.

    `apply` and `decide` are its only doors: they return everything that has to be done, told or counted.
    """

    def __init__(
        self,
        device: DeviceFacts,
        cache: HostCache,
        policy: InstancePolicy,
        cost: CostModel,
        *,
        service: ServiceLevel = DEFAULT_LEVEL,
        host_kv: HostKv | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`service` is the pool's own service level: the default of requests, and the measure of
        everyone's patience. `host_kv` is shared with other instances of the host; without it the instance
        has its own. `metrics` are those of the instance whose place it takes, if it takes one's: they go on.
        """
        state = self._state = LiveState(device, Ledger(device, cache, host_kv), cost, service)
        self.service = service
        self.cost = cost
        self.policy = policy
        self.ledger = state.ledger
        self.metrics = Metrics() if metrics is None else metrics
        self.models = state.models
        self.live_models = state.live_models
        self.resident_models = state.resident_models
        self.asked_models = state.asked_models
        self.unreadable_models = state.unreadable_models
        self.requests = state.requests
        self.queue = state.queue
        self._in_flight = state.in_flight
        self._superseding = Superseding()
        self._makes_way = policy.makes_way if isinstance(policy, MakesWay) else None
        self._next_to_load = policy.next_to_load if isinstance(policy, LoadsInOrder) else None

    # ── what a policy asks ──────────────────────────────────────────────────────────────────────────────────

    @property
    def now_s(self) -> float:
        return self._state.now_s

    @property
    def version(self) -> int:
        return self._state.version

    @property
    def device(self) -> DeviceFacts:
        return self._state.device

    def known_prefix(self, request: Request) -> KnownPrefix:
        model, prefix = self.models.get(request.model), request.prefix
        if prefix is None or model is None:
            return NOTHING_KNOWN
        block_size, grid = model.facts.kv.block_size, self.device.cell_tokens
        return self.ledger.sharing.known(prefix, block_size, request.n_prompt, grid)

    def in_flight(self, channel: Channel) -> Operation | None:
        started = self._in_flight.get(channel)
        return started.operation if started else None

    @property
    def arena_free_bytes(self) -> int:
        return self.ledger.free_bytes

    @property
    def any_on_disk(self) -> bool:
        return self._state.any_on_disk

    def fit(self, model: ModelId, evicted: Iterable[ModelId] = ()) -> Fit:
        facts = self.models[model].facts
        leaving = [self.models[other].facts for other in evicted]
        absent = self.ledger.absent_images(facts)
        images = self.ledger.images_to_place(facts, leaving)
        lost = (image for image in images if image not in absent)
        if self.ledger.arena.frozen or not all(self.ledger.cache.has(image.id) for image in lost):
            return Fit.NO
        n_bytes = sum(aligned(image.n_bytes) for image in images)
        if self.ledger.hole_without(leaving) >= n_bytes:
            return Fit.NOW
        if images == absent and self.ledger.can_place(facts):
            return Fit.NOW
        if (
            self.ledger.plan_compaction(n_bytes, self._state.fixed_models(), leaving, self._state.fixed_kv())
            is None
        ):
            return Fit.NO
        return Fit.AFTER_COMPACTION

    def can_compact(self, n_bytes: int) -> bool:
        if self.ledger.arena.frozen or n_bytes <= 0:
            return False
        return bool(
            self.ledger.plan_compaction(n_bytes, self._state.fixed_models(), (), self._state.fixed_kv())
        )

    def can_run(self, chunks: Iterable[Chunk], repeat: int = 1) -> bool:
        return self._state.can_run(chunks, repeat)

    def can_page_in(self, request: RequestId) -> bool:
        state = self.requests[request]
        block_bytes, n_blocks = state.kv.shape.block_bytes, state.kv.n_missing
        ready = state.model.decoding.values()
        if not ready or self.ledger.blocks.can_allocate(block_bytes, n_blocks + len(ready)):
            return self.ledger.can_page_in(state.kv)
        first = min(ready, key=lambda other: other.due_s)
        n_more = first.kv.blocks_to_grow(first.n_tokens)
        return self.ledger.blocks.can_allocate(block_bytes, n_blocks + n_more)

    def can_resume(self, request: RequestId) -> bool:
        state = self.requests[request]
        end = min(state.n_tokens, state.n_computed + self.device.prefill_chunk_tokens)
        n_blocks = state.kv.n_missing + state.kv.blocks_to_grow(end)
        return self.ledger.blocks.can_allocate(state.kv.shape.block_bytes, n_blocks)

    def can_page_out(self, request: RequestId) -> bool:
        return self.ledger.can_page_out(self.requests[request].kv)

    def can_fetch(self, model: ModelId) -> bool:
        state = self.models[model]
        if self.now_s < state.fetch_after_s and not state.n_live:
            return False
        cache, images = self.ledger.cache, state.facts.images
        return cache.can_fetch(images) and cache.respects_claims(images, state.due_s)

    def fetch_would_drop(self, model: ModelId) -> tuple[ImageId, ...]:
        return self.ledger.cache.would_drop(self.models[model].facts.images)

    # ── what a body calls ───────────────────────────────────────────────────────────────────────────────────

    def apply(self, event: Event) -> Effects:
        """Record an event in the state and tell the policy. Returns its effects."""
        state = self._state
        state.version += 1
        state.now_s = event.at_s
        self.metrics.count_work(len(state.live_models), event.at_s)
        match event:
            case StepDone():
                self._superseding.ended(complete.step(state, event), event)
            case CopyDone():
                self._superseding.ended(complete.copy(state, event), event)
            case Arrived():
                requests.arrive(state, event)
            case Withdrawn(_, request_id, with_kv):
                leaving.withdraw(state, request_id, with_kv)
            case Cancelled(_, request_id, reason):
                if request_id in state.requests:
                    requests.end(state, state.requests[request_id], reason)
            case Paused(at_s, request_id):
                requests.pause(state, request_id, at_s)
            case Resumed(at_s, request_id):
                requests.resume(state, request_id, at_s)
            case ModelAdded(_, facts):
                state.add_model(facts)
            case ModelRemoved(_, model_id):
                operator_wishes.remove(state, state.models[model_id])
            case ModelWanted(_, model_id, wanted, pinned):
                operator_wishes.want(state, state.models[model_id], wanted, pinned)
            case ResizeAsked(_, arena_bytes):
                resizing.ask(state, arena_bytes)
            case Resized(_, arena_bytes):
                resizing.done(state, arena_bytes)
        leaving.look(state)
        self._superseding.look(state)
        self.policy.on_event(event, self)
        if isinstance(event, Arrived) and self._makes_way is not None and state.resize_bytes is None:
            makes_way = self._makes_way
            self._superseding.arrived(state, lambda load, since_s: makes_way(load, since_s, event, self))
        step = self.in_flight(Channel.COMPUTE)
        if (
            isinstance(step, Step)
            and step.repeat > 1
            and not state.interrupted
            and self.policy.interrupts(step, event, self)
        ):
            state.interrupt()
        return self._effects()

    def decide(self, now_s: float) -> Effects:
        """Ask the policy what every free channel does next. Returns what has begun or was done at once. While
        the arena is to be replaced, `drain` is asked instead.

        After a plan that only makes room (actions but no operation), all channels are asked again. Raises
        IllegalPlan if the policy planned what is not allowed.
        """
        state = self._state
        state.now_s = state.shares.now_s = now_s
        planner = self.policy.plan if state.resize_bytes is None else drain.plan
        if state.leaving:
            planner = partial(leaving.plan, state, planner)
        made_room = True
        while made_room:
            made_room = False
            for channel in _CHANNELS:
                if channel in self._in_flight:
                    continue
                plan = planner(channel, self)
                if plan is IDLE:
                    continue
                state.version += 1
                for action in plan.at_once:
                    immediate_actions.do(state, action)
                if plan.operation is not None:
                    begin(state, channel, plan.operation)
                    self._superseding.look(state)
                elif plan.at_once:
                    made_room = True
        if self._next_to_load is not None and state.any_on_disk:
            first = self._next_to_load(self)
            claims.renew(state, None if first is None else state.models[first.facts.id])
        resizing.tell_when_drained(state)
        return self._effects()

    def abandon(self, now_s: float, step: StepDone | None = None) -> Effects:
        """The device is lost: all requests leave, or end if they were over and waited for an operation, and
        what operations in flight hold of the host cache is released.

        `step` tells how far the step in flight had come, if it has drawn tokens: they count. Nothing else may
        be asked of this instance afterwards, but what it knew.
        """
        state = self._state
        if step is not None:
            complete.step(state, step)
        state.now_s = now_s
        self.metrics.count_work(len(state.live_models), now_s)
        state.release_cache()
        for request in list(self.requests.values()):
            request.in_step = request.in_copy = False
            requests.end(state, request, *(request.to_end or (None,)))
        self.ledger.retire()
        return self._effects()

    def check_removable(self, model_id: ModelId) -> None:
        """Raise InUse while an operation in flight uses the model."""
        operator_wishes.check_removable(self.models[model_id])

    def check_pinnable(self, model_id: ModelId) -> None:
        """Raise DoesNotFit if pinning the model would leave another one without room to run."""
        operator_wishes.check_pinnable(self._state, self.models[model_id])

    def check_room_of_requests(self, pinned: Sequence[ModelFacts]) -> None:
        """Raise DoesNotFit if a live request would never fit beside these pinned models."""
        operator_wishes.check_room_of_requests(self._state, pinned)

    def check_unloadable(self, model_id: ModelId) -> None:
        """Raise InUse if the model is pinned."""
        operator_wishes.check_unloadable(self.models[model_id])

    def check_resizable(self, arena_bytes: int, elsewhere: Container[ModelId] = ()) -> None:
        """Raise InUse, InvalidRequest or DoesNotFit if the arena cannot be given that size. Other instances
        serve the models `elsewhere`."""
        resizing.check(self._state, arena_bytes, elsewhere)

    @property
    def resize_bytes(self) -> int | None:
        """The size that the arena is being emptied for; None if no resize was asked for."""
        return self._state.resize_bytes

    @property
    def is_idle(self) -> bool:
        return not self._in_flight

    def check_integrity(self) -> None:
        """Raise IntegrityError unless state and ledger agree to the byte."""
        self._state.check_integrity()

    # ── parts of the above ──────────────────────────────────────────────────────────────────────────────────

    def _effects(self) -> Effects:
        """The effects since the last call, counted."""
        effects = tuple(self._state.effects)
        self._state.effects.clear()
        count(self.metrics, self._state.now_s, effects)
        return effects
