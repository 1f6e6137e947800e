"""Forward progress: when no model can step, everything serves the most urgent request that could, until it
has stepped.

A policy asks `Rescue.is_blocked` first, and while that is true answers with `plan` instead of its own rules.
There is one target at a time, chosen by deadline, and one next action towards it on whichever channel is
asked. So nothing that is freed for the target is taken by another, and two models cannot chase each other
out. Once KV was discarded for a request, nothing else steps before it: others would rebuild theirs in the
room that was freed, and lose it again, for ever. In the end the target has the arena to itself, and admission
has made sure that this is enough. If models take turns
(`tokenmux.scheduler.policy.baselines.turn_taking`), the target belongs to the model whose turn it is, since
no other would step. What is given up on the way, in this order:

    KV that the host has ─▶ weights without requests ─▶ KV that the host has room for
      ─▶ other weights, the latest deadline first ─▶ holes between what remains ─▶ KV of others, to be rebuilt
      later ─▶ the target's other requests, in the same way ─▶ where things lie: its own KV, its own weights
"""

from collections.abc import Iterable

from tokenmux.core.phases import Residency
from tokenmux.core.plan import (
    IDLE,
    Activate,
    AtOnce,
    Channel,
    Compact,
    Discard,
    Drop,
    Evict,
    Operation,
    PageIn,
    PageOut,
    Plan,
    Step,
)
from tokenmux.core.request import RequestId
from tokenmux.scheduler.policy import eviction
from tokenmux.scheduler.policy.instance_policy import Fit, InstanceView, ModelView, RequestView
from tokenmux.scheduler.policy.steps import chunks_of, single_chunks, urgency

_PROMISING = (Channel.COMPUTE, Channel.COPY_IN, Channel.COPY_OUT)
"""Operations on these channels may let something run when they end. A fetch may not: two fetches can chase
each other for ever."""

_NEAR = (Residency.HOST, Residency.RESIDENT)

Action = Operation | tuple[AtOnce, ...]

_CHANNELS = {
    PageOut: Channel.COPY_OUT,
    PageIn: Channel.COPY_IN,
    Activate: Channel.COPY_IN,
    Compact: Channel.COPY_IN,
}


class Rescue:
    """The rescues of one instance. A policy is asked for every channel, so `is_blocked` is found once for
    each version of the instance."""

    __slots__ = ("_looked_at", "_served", "_was_blocked")

    def __init__(self) -> None:
        self._looked_at: tuple[int, ModelView | None] = (-1, None)
        self._was_blocked = False
        self._served: RequestId | None = None
        """The request for which KV was discarded, until it steps."""

    def is_blocked(self, view: InstanceView, turn: ModelView | None = None) -> bool:
        """True if `plan` is to be asked: nothing can step, or KV was discarded for a request that has not
        stepped yet. `turn` is the only model that the policy would let step, if there is such a model."""
        if self._looked_at != (view.version, turn):
            self._looked_at = view.version, turn
            self._was_blocked = self._target(view, turn) is not None or _nothing_steps(view, turn)
        return self._was_blocked

    def plan(self, channel: Channel, view: InstanceView, turn: ModelView | None = None) -> Plan:
        """What this channel does for the target: a request of `turn`, or of any model."""
        if channel is Channel.FETCH:
            return fetch(view)
        target = self._target(view, turn)
        if target is None:
            model = _most_urgent(view, turn)
            action = _next_action(view, turn, model)
        elif (step := _step_of(view, target)) is not None:
            if channel is not Channel.COMPUTE:
                return IDLE
            self._served = None
            return Plan(step)
        elif _is_busy(view):
            return IDLE
        else:
            action = _action_for(view, target)
        if action is None or channel is Channel.COMPUTE:
            return IDLE
        if not isinstance(action, tuple):
            return Plan(action) if _CHANNELS[type(action)] is channel else IDLE
        if target is None and model is not None and any(isinstance(one, Discard) for one in action):
            self._served = _first(_own(model)).request.id
        return Plan(at_once=action)

    def _target(self, view: InstanceView, turn: ModelView | None) -> RequestView | None:
        """The request for which KV was discarded, if it still waits for its step and may have it."""
        if self._served is None:
            return None
        target = view.requests.get(self._served)
        if target is not None and not target.in_step:
            model = view.models[target.request.model]
            if turn in (None, model) and model.residency in _NEAR and target in _own(model):
                return target
        self._served = None
        return None


def _nothing_steps(view: InstanceView, turn: ModelView | None) -> bool:
    """True if requests wait, no step runs or can run, and no transfer in flight can change that."""
    if _is_busy(view):
        return False
    for model in view.resident_models.values():
        if model.is_moving or (turn is not None and model is not turn):
            continue
        if any(view.can_run([chunk]) for chunk in single_chunks(view, model)):
            return False
    if turn is not None:
        return turn.n_live > 0
    return any(model.n_live for model in view.live_models.values())


def fetch(view: InstanceView) -> Plan:
    """Fetch the most urgent model, unless that would drop a more urgent one from the host cache."""
    if not view.any_on_disk:
        return IDLE
    live = [model for model in view.live_models.values() if model.n_live]
    return eviction.fetch_first(view, sorted(live, key=lambda model: model.due_s))


def _next_action(view: InstanceView, turn: ModelView | None, target: ModelView | None) -> Action | None:
    """The next action towards a step of any request of `turn`, or of the most urgent model in memory, which
    is the `target`. None: wait for what is in flight."""
    resident = [m for m in view.resident_models.values() if turn is None or m is turn]
    for model in sorted(resident, key=lambda model: model.due_s):
        resumable = [r for r in model.away.values() if not r.in_copy and view.can_resume(r.request.id)]
        if resumable:
            return PageIn((_first(resumable).request.id,))
    return None if target is None else _bring(view, target, _first(_own(target)))


def _action_for(view: InstanceView, target: RequestView) -> Action | None:
    """The next action towards a step of this request."""
    model = view.models[target.request.model]
    if model.is_moving:
        return None
    is_away = target.request.id in model.away
    if is_away and model.residency is Residency.RESIDENT and view.can_resume(target.request.id):
        return PageIn((target.request.id,))
    return _bring(view, model, target)


def _bring(view: InstanceView, model: ModelView, first: RequestView) -> Action | None:
    """The next action that brings the model onto the device, or else makes room for this request of it."""
    if model.residency is Residency.RESIDENT:
        return None if first.in_copy else _make_room(view, model, first)
    match view.fit(model.facts.id):
        case Fit.NOW:
            return Activate(model.facts.id)
        case Fit.AFTER_COMPACTION:
            return Compact(model.facts.n_bytes)
        case Fit.NO:
            return _make_room(view, model, first)


def _most_urgent(view: InstanceView, turn: ModelView | None) -> ModelView | None:
    """The most urgent model in memory, or `turn`; None if it cannot be served now."""
    candidates = view.live_models.values() if turn is None else (turn,)
    models = [m for m in candidates if m.n_live and m.residency in _NEAR and not m.is_moving]
    return min(models, key=lambda model: model.due_s, default=None)


def _step_of(view: InstanceView, target: RequestView) -> Step | None:
    """A step of this request alone, if it can begin now."""
    model = view.models[target.request.model]
    is_here = model.residency is Residency.RESIDENT and target.request.id not in model.away
    if not is_here or model.is_moving or view.in_flight(Channel.COMPUTE) is not None:
        return None
    chunks = chunks_of(view, model, target)
    return Step(model.facts.id, tuple(chunks), 1) if view.can_run(chunks) else None


def _is_busy(view: InstanceView) -> bool:
    """True if an operation is in flight that may let something step when it ends."""
    return any(view.in_flight(channel) is not None for channel in _PROMISING)


def _make_room(view: InstanceView, target: ModelView, first: RequestView) -> Action | None:
    """Give up the cheapest thing that can still go, but never `first`, a request of the target."""
    others = list(eviction.kv_holders(view, keep=target))
    clean = [request for request in others if request.is_clean]
    if clean:
        return (Drop(_last(clean).request.id),)
    idle = eviction.idle_model(view)
    if idle is not None:
        return (idle,)
    storable = [request for request in others if view.can_page_out(request.request.id)]
    if storable:
        return PageOut((_last(storable).request.id,))
    weights = [m for m in eviction.evictable(view) if m is not target]
    if weights:
        return (Evict(max(weights, key=lambda m: m.due_s).facts.id),)
    free = view.arena_free_bytes
    if target.residency is Residency.RESIDENT and view.can_compact(free):
        return Compact(free)
    own = [r for r in _own(target) if r.device_bytes and not r.in_copy]
    for holders in (others, [r for r in own if r is not first]):
        if holders:
            return _give_up(view, holders)
    return _start_over(view, target, own)


def _start_over(view: InstanceView, target: ModelView, own: list[RequestView]) -> Action | None:
    """Move out everything of a target that is alone in the arena and still lacks room: only the layout is
    in the way, and it comes back to a better one."""
    if view.in_flight(Channel.COPY_OUT) is not None:
        return None
    storable = [r for r in own if not r.is_clean and view.can_page_out(r.request.id)]
    if storable:
        return PageOut((_first(storable).request.id,))
    leaving: list[AtOnce] = [(Drop if r.is_clean else Discard)(r.request.id) for r in own]
    if target.residency is Residency.RESIDENT:
        leaving.append(Evict(target.facts.id))
    return tuple(leaving)


def _give_up(view: InstanceView, holders: list[RequestView]) -> Action | None:
    """Give up KV of the request that can wait longest: drop it if the host has it, otherwise page it out,
    otherwise discard it."""
    last = _last(holders)
    if last.is_clean:
        return (Drop(last.request.id),)
    if view.in_flight(Channel.COPY_OUT) is not None:
        return None
    storable = [r for r in holders if not r.is_clean and view.can_page_out(r.request.id)]
    return PageOut((_last(storable).request.id,)) if storable else (Discard(last.request.id),)


def _own(model: ModelView) -> list[RequestView]:
    return [r for file in (model.waiting, model.decoding, model.away) for r in file.values()]


def _first(requests: Iterable[RequestView]) -> RequestView:
    return min(requests, key=urgency)


def _last(requests: Iterable[RequestView]) -> RequestView:
    return max(requests, key=urgency)
