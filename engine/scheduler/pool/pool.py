"""The instances of a pool and what passes between them; synchronous, and the same for the node and the
simulator.

    body ── submit, apply(index, event) ──▶ instance ──▶ effects ──▶ body
                                               │
                        pool policy ◀──────────┘
                             └── move ──▶ Withdrawn ──▶ RequestLeft ──▶ Arrived at another instance
    body ── settle() ──▶ instances that have changed decide, and requests on their way arrive

A body applies what has happened and then calls `settle`, which leaves nothing undone; at `next_expiry_s` it
calls `expire` before. `hold`, `drain`, `lose`, `add` and `remove` change which instances there are; call
`settle` after them too.
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Protocol

from tokenmux.core.clock import Clock
from tokenmux.core.effects import CopyEnded, Effects, RequestEnded, RequestLeft
from tokenmux.core.errors import InternalError, InUse
from tokenmux.core.event import (
    Arrived,
    Cancelled,
    Event,
    ModelAdded,
    ModelRemoved,
    ModelWanted,
    Paused,
    Resumed,
    StepDone,
)
from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.core.started import StartedActivation, StartedFetch
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.policy.pool.pool_policy import PoolPolicy, Refuse
from tokenmux.scheduler.pool import operators
from tokenmux.scheduler.pool.agenda import Agenda
from tokenmux.scheduler.pool.expiries import Expiries
from tokenmux.scheduler.pool.members import Members
from tokenmux.scheduler.pool.moves import Moves
from tokenmux.scheduler.pool.placing import Placing
from tokenmux.scheduler.pool.whereabouts import Whereabouts


class PoolBody(Protocol):
    """Carries out what instances decide: the node on real time, the simulator on virtual time."""

    def carry_out(self, index: int, effects: Effects) -> None:
        """Start, interrupt, tell and count what an event or a decision of instance `index` caused, in this
        order. Called with every effect; what concerns other instances the pool does itself. Only `post` may
        be called meanwhile."""
        ...


class Pool:
    """Instances by index, as `tokenmux.scheduler.policy.pool.pool_policy.PoolView`.

    An index stays that of its instance for ever: a lost one is replaced, a removed one leaves an empty slot.
    """

    def __init__(
        self,
        instances: Sequence[Instance],
        policy: PoolPolicy,
        body: PoolBody,
        clock: Clock,
        models: Mapping[ModelId, ModelFacts] | None = None,
        n_tokens: Callable[[Request], int] = lambda request: request.n_prompt + request.max_tokens,
    ) -> None:
        """An instance learns of a model of `models` when a request first brings it there; of others by
        `add_model` or by `apply`. A request fits an instance that has room for `n_tokens` of it; a simulation
        knows better than its limit."""
        self.policy = policy
        self._members = Members(instances, n_tokens)
        self._body = body
        self._clock = clock
        self._models = models or {}
        self._added: dict[ModelId, ModelFacts] = {}
        self._expiries = Expiries()
        self._whereabouts = Whereabouts()
        self._agenda = Agenda(self._members)
        self._placing = Placing(policy, self._members, self, n_tokens)
        self._moves = Moves(
            policy, self._members, self._whereabouts, self._agenda, self._placing, self, self.apply
        )

    # ── what a pool policy asks ─────────────────────────────────────────────────────────────────────────────

    @property
    def now_s(self) -> float:
        return self._clock.now_s()

    @property
    def instances(self) -> Sequence[Instance]:
        return self._members.instances

    @property
    def open(self) -> Sequence[int]:
        return self._members.open

    @property
    def held(self) -> AbstractSet[int]:
        return self._members.held

    @property
    def present(self) -> Sequence[int]:
        """Indices of all instances but the removed ones, in order."""
        return self._members.present

    def facts(self, model: ModelId) -> ModelFacts:
        facts = self._added.get(model) or self._models.get(model)
        if facts is not None:
            return facts
        for instance in self.instances:
            if model in instance.models:
                return instance.models[model].facts
        raise InternalError(f"no instance of the pool knows a model {model}")

    def takes(self, index: int, request: Request) -> bool:
        return self._members.takes(index, request, self.facts(request.model))

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, arrived: Arrived) -> int | Refuse:
        """Place a request and apply its arrival. Returns the index of its instance, or why there is none."""
        index = self._placing.place(arrived.request)
        if isinstance(index, Refuse):
            return index
        self._expiries.add(arrived.request)
        self.apply(index, replace(arrived, at_s=self.now_s))
        return index

    @property
    def next_expiry_s(self) -> float:
        """When to call `expire` next; infinity if no request expires."""
        return self._expiries.next_s

    def expire(self) -> None:
        """End the requests whose clients have stopped waiting, wherever they are."""
        for request in self._expiries.pop(self.now_s):
            self.apply_to_request(Cancelled(self.now_s, request, FinishReason.EXPIRED))

    def index_of(self, request: RequestId) -> int | None:
        """The instance that has the request; None if it is on its way to another, or not live."""
        return self._whereabouts.on.get(request)

    def has(self, request: RequestId) -> bool:
        """True if the request is live: on an instance, or on its way to one."""
        return self._whereabouts.has(request)

    @property
    def n_moves(self) -> int:
        """Number of moves that the policy has asked for."""
        return self._moves.n_begun

    def apply_to_request(self, event: Cancelled | Paused | Resumed) -> None:
        """Apply an event to the instance that has its request. It follows one that is on its way, and
        changes nothing if the request is over."""
        if event.request in self._whereabouts.between:
            self.post_to_request(event)
        elif event.request in self._whereabouts.on:
            self.apply(self._whereabouts.on[event.request], event)

    # ── events and decisions ────────────────────────────────────────────────────────────────────────────────

    def apply(self, index: int, event: Event) -> None:
        """Apply an event to an instance, and note what follows from it for others. Decisions wait for
        `settle`."""
        instance = self.instances[index]
        if isinstance(event, Arrived):
            self._introduce(index, event.request.model)
            self._whereabouts.on[event.request.id] = index
        self._carry_out(index, instance.apply(event))
        self._members.note(index, event)
        for move in self.policy.on_event(index, event, self):
            self._moves.begin(move)
        self._agenda.mark(index)
        if isinstance(event, Cancelled | Paused) and instance.any_on_disk:
            self._agenda.mark_sharers(index)  # their fetches may have respected a claim that is gone

    def post(self, index: int, event: Event) -> None:
        """Have `settle` apply an event, after those that are waiting already: for a body that is carrying
        effects out."""
        self._agenda.events.append((index, event))

    def post_to_request(self, event: Cancelled | Paused | Resumed) -> None:
        """As `post`, to the instance that has the request by then."""
        self._agenda.events.append((None, event))

    def settle(self) -> None:
        """Have every instance that has changed decide, and carry out all that follows."""
        agenda = self._agenda
        while True:
            if agenda.changed:
                index = next(iter(agenda.changed))
                del agenda.changed[index]
                self._decide(index)
            elif agenda.events:
                self._apply_next(*agenda.events.popleft())
            elif agenda.loaded:
                self._tell_sharers(*agenda.loaded.popleft())
            else:
                return

    # ── models ──────────────────────────────────────────────────────────────────────────────────────────────

    def add_model(self, facts: ModelFacts) -> None:
        """Tell every instance of a model, those that come later too."""
        self._added[facts.id] = facts
        for index in self._members.present:
            self.apply(index, ModelAdded(self.now_s, facts))

    def remove_model(self, model: ModelId) -> None:
        """Have every instance forget a model. Its requests fail, also those on their way."""
        self.settle()
        for index in self._members.present:
            if model in self.instances[index].models:
                self.apply(index, ModelRemoved(self.now_s, model))
        self._added.pop(model, None)

    # ── which instances there are ───────────────────────────────────────────────────────────────────────────

    def hold(self, index: int) -> None:
        """The device of this instance is being started: it is not asked to decide, and takes only requests
        that fit nowhere else."""
        self._members.held.add(index)
        self._members.changed()
        self._agenda.changed.pop(index, None)

    def release(self, index: int) -> None:
        """The device of a held instance is there."""
        self._members.held.discard(index)
        self._members.changed()
        self._agenda.mark(index)
        self._moves.evacuate()

    def drain(self, index: int) -> None:
        """From now on place nothing on this instance, and move its requests and its pins to others. Requests
        that fit nowhere else stay until they do, and pins for ever: ask `check_drainable` first."""
        pins = operators.pins_elsewhere(self._members, index)
        for model, target in pins.items():
            self._introduce(target, model)
            self.apply(target, ModelWanted(self.now_s, model, pinned=True))
            self.apply(index, ModelWanted(self.now_s, model, pinned=False))
        self._members.closed.add(index)
        self._members.changed()
        self._moves.evacuate()

    def undrain(self, index: int) -> None:
        """Let a drained instance take requests again."""
        self._members.closed.discard(index)
        self._members.changed()
        self._moves.evacuate()

    def is_empty(self, index: int) -> bool:
        """True if no request is on this instance or on its way there."""
        return not self.instances[index].requests and not self._whereabouts.may_come_to(index)

    def add(self, instance: Instance, *, held: bool = False) -> int:
        """Add an instance, `held` if its device is not there yet. Returns its index."""
        index = self._members.add(instance)
        if held:
            self.hold(index)
        for facts in self._added.values():
            self.apply(index, ModelAdded(self.now_s, facts))
        self._agenda.mark(index)
        self._moves.evacuate()
        return index

    def remove(self, index: int) -> None:
        """Take an instance out of the pool for ever. Its device must be gone or about to go. Raises InUse
        unless it is empty."""
        if not self.is_empty(index):
            raise InUse(f"instance {index} has requests: drain it first")
        self._carry_out(index, self.instances[index].abandon(self.now_s))
        self._members.removed.add(index)
        self._members.held.discard(index)
        self._members.closed.discard(index)
        self._members.changed()
        self._agenda.forget(index)
        self._agenda.mark_sharers(index)

    def lose(self, index: int, replacement: Instance, step: StepDone | None = None) -> None:
        """The device of an instance is lost, with the KV that was only there. `replacement` takes its slot,
        and learns its models and what operators wished for.

        Its requests are placed again, on any instance that takes them. `step` tells which iterations of the
        step in flight had drawn their tokens, if there are any: these tokens count. Call `hold` before if the
        replacement's device is not there yet. Nothing of the lost device may still write to host memory.
        """
        lost = self.instances[index]
        sharers = self._members.sharers[index]
        self._agenda.forget(index)
        n_waiting = len(self._agenda.events)
        self._carry_out(index, lost.abandon(self.now_s, step))
        leaving = self._agenda.take_events(n_waiting)
        self._members.replace(index, replacement)
        for model in lost.models.values():
            self.apply(index, ModelAdded(self.now_s, model.facts))
            if model.pinned or model.wanted:
                wish = ModelWanted(self.now_s, model.facts.id, model.wanted or None, model.pinned or None)
                self.apply(index, wish)
        for target, event in leaving:
            self._apply_next(target, event)
        self._agenda.mark(index)
        for sharer in sharers:
            self._agenda.mark(sharer)

    # ── what operators may change ───────────────────────────────────────────────────────────────────────────

    def load_target(self, model: ModelId) -> int:
        """The instance that should load the model for an operator. Raises DoesNotFit if there is none."""
        return operators.load_target(self._members, self.facts(model))

    def pin_target(self, model: ModelId) -> int:
        """The instance that should pin the model for an operator. Raises DoesNotFit if there is none."""
        return operators.pin_target(self._members, self.facts(model))

    def check_drainable(self, index: int) -> None:
        """Raise DoesNotFit if a model, or a pin, would find no room on the other instances."""
        operators.check_drainable(self._members, index)

    def check_resizable(self, index: int, arena_bytes: int) -> None:
        """Raise InUse, InvalidRequest or DoesNotFit if the arena cannot be given that size."""
        operators.check_resizable(self._members, index, arena_bytes)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless the books of every instance balance, and InternalError unless the pool
        knows where its requests are."""
        for index in self._members.present:
            self.instances[index].check_integrity()
        self._whereabouts.check_integrity(
            {request: i for i in self._members.present for request in self.instances[i].requests}
        )

    # ── parts of the above ──────────────────────────────────────────────────────────────────────────────────

    def _decide(self, index: int) -> None:
        self._carry_out(index, self.instances[index].decide(self.now_s))

    def _apply_next(self, index: int | None, event: Event) -> None:
        match event:
            case Arrived(_, request) if request.id in self._whereabouts.between:
                self._moves.arrive(request.id)
            case Cancelled() | Paused() | Resumed() if index is None:
                self.apply_to_request(event)
            case _ if index is not None:
                self.apply(index, event)

    def _carry_out(self, index: int, effects: Effects) -> None:
        if not effects:
            return
        self._body.carry_out(index, effects)
        for effect in effects:
            if isinstance(effect, CopyEnded):
                if isinstance(effect.started, StartedActivation | StartedFetch):
                    self._agenda.loaded.append((index, effect.started))
            elif isinstance(effect, RequestEnded):
                self._ended(index, effect.record.request)
            elif isinstance(effect, RequestLeft):
                if self.instances[index].any_on_disk:
                    self._agenda.mark_sharers(index)
                self._moves.left(index, effect.arrival)

    def _ended(self, index: int, request: Request) -> None:
        self._expiries.forget(request.id)
        target = self._whereabouts.leave(request.id)
        self.policy.on_left(index, request)
        if target is not None:
            self.policy.on_left(target, request)

    def _introduce(self, index: int, model: ModelId) -> None:
        instance = self.instances[index]
        if model not in instance.models and model in self._models:
            self._carry_out(index, instance.apply(ModelAdded(self.now_s, self._models[model])))

    def _tell_sharers(self, index: int, load: StartedActivation | StartedFetch) -> None:
        """Ask others on the same host again, since the host cache has changed.

        A fetch brought images for which they may wait. An activation that ended no longer holds images, so
        that they may fetch.
        """
        for sharer in self._members.sharers[index]:
            if sharer in self._members.held:
                continue
            if isinstance(load, StartedFetch) or self.instances[sharer].any_on_disk:
                self._decide(sharer)
