"""The instances of a pool and what passes between them; synchronous, and the same for the node and the
simulator.

    body ── submit, apply(index, event) ──▶ instance ──▶ effects ──▶ body
                                               │
                        pool policy ◀──────────┘
                             └── move ──▶ Withdrawn ──▶ RequestLeft ──▶ Arrived at another instance
    body ── settle() ──▶ instances that have changed decide, and requests on their way arrive

A body applies what has happened and then calls `settle`, which leaves nothing undone; at `next_expiry_s` it
calls `expire` before. `hold`, `drain`,
`lose`, `add` and `remove` change which instances there are; call `settle` after them too.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
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
    Withdrawn,
)
from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.core.started import StartedActivation, StartedFetch
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.policy.pool.pool_policy import Move, PoolPolicy, Refuse
from tokenmux.scheduler.pool import operators
from tokenmux.scheduler.pool.expiries import Expiries
from tokenmux.scheduler.pool.members import Members


class PoolBody(Protocol):
    """Carries out what instances decide: the node on real time, the simulator on virtual time."""

    def carry_out(self, index: int, effects: Effects) -> None:
        """Start, interrupt, tell and count what an event or a decision of instance `index` caused, in this
        order. Called with every effect; what concerns other instances the pool does itself. Only `post` may
        be called meanwhile."""
        ...


@dataclass(frozen=True, slots=True)
class _Transit:
    """A request that has left an instance and not arrived yet."""

    source: int
    instance: Instance
    """The one that it left. It may have been lost since then."""
    target: int | None
    """Where the pool policy moves it; None: it will be placed when it arrives."""
    arrived: Arrived


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
        self.n_moves = 0
        """Number of moves that the policy asked for."""
        self._members = Members(instances, n_tokens)
        self._n_tokens = n_tokens
        self._body = body
        self._clock = clock
        self._models = models or {}
        self._added: dict[ModelId, ModelFacts] = {}
        self._where: dict[RequestId, int] = {}
        """The instance of every live request that is on one."""
        self._asked: dict[RequestId, int | None] = {}
        """Requests that have been asked to leave their instance, with the target if the policy named one."""
        self._in_transit: dict[RequestId, _Transit] = {}
        self._expiries = Expiries()
        self._pending: deque[tuple[int | None, Event]] = deque()
        """Events that have been caused and not applied yet, with the index of their instance; None: wherever
        the request is."""
        self._changed: dict[int, None] = {}
        """Instances that have to decide, in order."""
        self._loaded: deque[tuple[int, StartedActivation | StartedFetch]] = deque()
        """Loads that have ended and of which other instances have not been told yet."""

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
        request = arrived.request
        if not self._is_taken(request):
            return Refuse(self._why_not(request))
        answer = self.policy.place(request, self)
        if isinstance(answer, Refuse):
            return answer
        if not self.takes(answer.instance, request):
            raise InternalError(f"{self.policy.name} placed {request.id} on instance {answer.instance}")
        self._expiries.add(request)
        self._arrive(answer.instance, arrived)
        return answer.instance

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
        return self._where.get(request)

    def has(self, request: RequestId) -> bool:
        """True if the request is live: on an instance, or on its way to one."""
        return request in self._where or request in self._in_transit

    def apply_to_request(self, event: Cancelled | Paused | Resumed) -> None:
        """Apply an event to the instance that has its request. It follows one that is on its way, and
        changes nothing if the request is over."""
        if event.request in self._in_transit:
            self._pending.append((None, event))
        elif event.request in self._where:
            self.apply(self._where[event.request], event)

    # ── events and decisions ────────────────────────────────────────────────────────────────────────────────

    def apply(self, index: int, event: Event) -> None:
        """Apply an event to an instance, and note what follows from it for others. Decisions wait for
        `settle`."""
        instance = self.instances[index]
        if isinstance(event, Arrived):
            self._introduce(index, event.request.model)
            self._where[event.request.id] = index
        self._carry_out(index, instance.apply(event))
        self._members.note(index, event)
        for move in self.policy.on_event(index, event, self):
            self._move(move)
        self._mark(index)
        if isinstance(event, Cancelled | Paused) and instance.any_on_disk:
            self._mark_sharers(index)  # their fetches may have respected a claim that is gone

    def post(self, index: int, event: Event) -> None:
        """Have `settle` apply an event, after those that are waiting already: for a body that is carrying
        effects out."""
        self._pending.append((index, event))

    def post_to_request(self, event: Paused | Resumed) -> None:
        """As `post`, to the instance that has the request by then."""
        self._pending.append((None, event))

    def settle(self) -> None:
        """Have every instance that has changed decide, and carry out all that follows."""
        while True:
            if self._changed:
                index = next(iter(self._changed))
                del self._changed[index]
                self._decide(index)
            elif self._pending:
                self._apply_next(*self._pending.popleft())
            elif self._loaded:
                self._tell_sharers(*self._loaded.popleft())
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
        self._changed.pop(index, None)

    def release(self, index: int) -> None:
        """The device of a held instance is there."""
        self._members.held.discard(index)
        self._members.changed()
        self._mark(index)
        self._evacuate()

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
        self._evacuate()

    def undrain(self, index: int) -> None:
        """Let a drained instance take requests again."""
        self._members.closed.discard(index)
        self._members.changed()
        self._evacuate()

    def is_empty(self, index: int) -> bool:
        """True if no request is on this instance or on its way there."""
        coming = (*self._asked.values(), *(transit.target for transit in self._in_transit.values()))
        staying = (t.source for t in self._in_transit.values() if t.target is None)
        return not self.instances[index].requests and index not in coming and index not in staying

    def add(self, instance: Instance, *, held: bool = False) -> int:
        """Add an instance, `held` if its device is not there yet. Returns its index."""
        index = self._members.add(instance)
        if held:
            self.hold(index)
        for facts in self._added.values():
            self.apply(index, ModelAdded(self.now_s, facts))
        self._mark(index)
        self._evacuate()
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
        self._forget_events(index)
        self._mark_sharers(index)

    def lose(self, index: int, replacement: Instance, step: StepDone | None = None) -> None:
        """The device of an instance is lost, with the KV that was only there. `replacement` takes its slot,
        and learns its models and what operators wished for.

        Its requests are placed again, on any instance that takes them. `step` tells which iterations of the
        step in flight had drawn their tokens, if there are any: these tokens count. Call `hold` before if the
        replacement's device is not there yet. Nothing of the lost device may still write to host memory.
        """
        lost = self.instances[index]
        sharers = self._members.sharers[index]
        self._forget_events(index)
        n_pending = len(self._pending)
        self._carry_out(index, lost.abandon(self.now_s, step))
        leaving = [self._pending.pop() for _ in range(len(self._pending) - n_pending)]
        self._members.replace(index, replacement)
        for model in lost.models.values():
            self.apply(index, ModelAdded(self.now_s, model.facts))
            if model.pinned or model.wanted:
                wish = ModelWanted(self.now_s, model.facts.id, model.wanted or None, model.pinned or None)
                self.apply(index, wish)
        for target, event in reversed(leaving):
            self._apply_next(target, event)
        self._mark(index)
        for sharer in sharers:
            self._mark(sharer)

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
        where = {request: i for i in self._members.present for request in self.instances[i].requests}
        if where != self._where or where.keys() & self._in_transit.keys():
            raise InternalError("pool: a request is not where it should be")
        if self._asked.keys() - where.keys():
            raise InternalError("pool: a request that is over was asked to leave")

    # ── parts of the above ──────────────────────────────────────────────────────────────────────────────────

    def _mark(self, index: int) -> None:
        if index not in self._members.held and index not in self._members.removed:
            self._changed[index] = None

    def _mark_sharers(self, index: int) -> None:
        for sharer in self._members.sharers[index]:
            self._mark(sharer)

    def _decide(self, index: int) -> None:
        self._carry_out(index, self.instances[index].decide(self.now_s))

    def _apply_next(self, index: int | None, event: Event) -> None:
        match event:
            case Arrived(_, request) if request.id in self._in_transit:
                self._end_transit(self._in_transit.pop(request.id))
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
                    self._loaded.append((index, effect.started))
            elif isinstance(effect, RequestEnded):
                self._ended(index, effect.record.request)
            elif isinstance(effect, RequestLeft):
                self._left(index, effect.arrival)

    def _ended(self, index: int, request: Request) -> None:
        del self._where[request.id]
        self._expiries.forget(request.id)
        self.policy.on_left(index, request)
        target = self._asked.pop(request.id, None)
        if target is not None:
            self.policy.on_left(target, request)

    def _left(self, index: int, arrived: Arrived) -> None:
        request = arrived.request
        del self._where[request.id]
        if self.instances[index].any_on_disk:
            self._mark_sharers(index)
        target = self._asked.pop(request.id, None)
        if target is not None:
            self.policy.on_left(index, request)
        self._in_transit[request.id] = _Transit(index, self.instances[index], target, arrived)
        self._pending.append((None, arrived))

    def _end_transit(self, transit: _Transit) -> None:
        """Have a request arrive: where the policy moves it, where the policy places it, or (if no other
        instance takes it) where it came from."""
        request, target = transit.arrived.request, transit.target
        if target is not None and not self.takes(target, request) and self._is_taken(request):
            self.policy.on_left(target, request)
            target = self._place_again(transit.source, request)
        elif target is None and self._is_taken(request, but=transit.source):
            self.policy.on_left(transit.source, request)
            target = self._place_again(transit.source, request)
        self._bring(transit, transit.source if target is None else target)

    def _bring(self, transit: _Transit, index: int) -> None:
        """Have a request arrive with the KV that the host has of it.

        Instances that share host KV hand it over as it is. From the host of another instance it is copied,
        unless that was lost. It ends on the grid of cells of its next instance.
        """
        arrived, left, instance = transit.arrived, transit.instance, self.instances[index]
        n_kept = arrived.n_kept
        was_lost = self.instances[transit.source] is not left
        if was_lost and instance.ledger.host_kv is not left.ledger.host_kv:
            n_kept = 0
        if n_kept < arrived.request.n_prompt:
            n_kept -= n_kept % instance.device.cell_tokens
        self._arrive(index, replace(arrived, n_kept=n_kept))
        left.ledger.host_kv.forget(arrived.request.id)

    def _place_again(self, source: int, request: Request) -> int:
        """Place a request that was accepted before. A policy that refuses it leaves it on its instance."""
        answer = self.policy.place(request, self)
        if isinstance(answer, Refuse):
            return source
        if answer.instance != source and not self.takes(answer.instance, request):
            raise InternalError(f"{self.policy.name} placed {request.id} on instance {answer.instance}")
        return answer.instance

    def _is_taken(self, request: Request, but: int | None = None) -> bool:
        """True if an instance other than `but` takes the request."""
        return any(self.takes(i, request) for i in range(len(self.instances)) if i != but)

    def _why_not(self, request: Request) -> str:
        facts = self.facts(request.model)
        if any(self._members.fits(index, request, facts) for index in self._members.present):
            return "every device that could serve this is being drained: let one serve again, or add one"
        n_tokens = self._n_tokens(request)
        return (
            f"no device has room for {n_tokens} tokens of {request.model}: ask for fewer, or add a larger one"
        )

    def _arrive(self, index: int, arrived: Arrived) -> None:
        self.apply(index, replace(arrived, at_s=self.now_s))

    def _introduce(self, index: int, model: ModelId) -> None:
        instance = self.instances[index]
        if model not in instance.models and model in self._models:
            self._carry_out(index, instance.apply(ModelAdded(self.now_s, self._models[model])))

    def _move(self, move: Move) -> None:
        if self._where.get(move.request) != move.source:
            raise InternalError(f"{self.policy.name} moves {move.request}, which is not on {move.source}")
        if move.request in self._asked:
            # It is leaving a drained instance already, and will be placed.
            request = self.instances[move.source].requests[move.request].request
            self.policy.on_left(move.target, request)
            return
        self.n_moves += 1
        self._withdraw(move.source, move.request, move.target)

    def _withdraw(self, index: int, request: RequestId, target: int | None) -> None:
        self._asked[request] = target
        self._pending.append((index, Withdrawn(self.now_s, request, with_kv=True)))

    def _evacuate(self) -> None:
        """Withdraw requests of instances that do not serve, if another one takes them."""
        for index in sorted(self._members.closed | self._members.held):
            for state in self.instances[index].requests.values():
                can_leave = state.to_end is None and state.id not in self._asked
                if can_leave and self._is_taken(state.request, but=index):
                    self._withdraw(index, state.id, None)

    def _forget_events(self, index: int) -> None:
        """Drop events that were on their way to an instance that is no longer there."""
        self._pending = deque(entry for entry in self._pending if entry[0] != index)
        self._changed.pop(index, None)

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
