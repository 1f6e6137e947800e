"""Forward progress: when no model can step, everything serves the most urgent request that could, until it
has stepped.

A policy asks `is_blocked` first, and while that is true answers with `plan` instead of its own rules. There
is one target at a time, chosen by deadline, and one next action towards it on whichever channel is asked. So
nothing that is freed for the target is taken by another, and two models cannot chase each other out. In the
end the target has the arena to itself, and admission has made sure that this is enough. If models take turns
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
)
from tokenmux.scheduler.policy import eviction
from tokenmux.scheduler.policy.instance_policy import Fit, InstanceView, ModelView, RequestView
from tokenmux.scheduler.policy.steps import single_chunks

_PROMISING = (Channel.COMPUTE, Channel.COPY_IN, Channel.COPY_OUT)
"""Operations on these channels may let something run when they end. A fetch may not: two fetches can chase
each other for ever."""

Action = Operation | tuple[AtOnce, ...]

_CHANNELS = {
    PageOut: Channel.COPY_OUT,
    PageIn: Channel.COPY_IN,
    Activate: Channel.COPY_IN,
    Compact: Channel.COPY_IN,
}


class Watch:
    """`is_blocked` of one instance, found once for each of its versions: a policy is asked for every
    channel."""

    __slots__ = ("_looked_at", "_was_blocked")

    def __init__(self) -> None:
        self._looked_at: tuple[int, ModelView | None] = (-1, None)
        self._was_blocked = False

    def is_blocked(self, view: InstanceView, turn: ModelView | None = None) -> bool:
        if self._looked_at != (view.version, turn):
            self._looked_at, self._was_blocked = (view.version, turn), is_blocked(view, turn)
        return self._was_blocked


def is_blocked(view: InstanceView, turn: ModelView | None = None) -> bool:
    """True if requests wait, no step runs or can run, and no transfer in flight can change that.

    `turn` is the only model that the policy would let step, if there is such a model.
    """
    for channel in _PROMISING:
        if view.in_flight(channel) is not None:
            return False
    for model in view.resident_models.values():
        if model.is_moving or (turn is not None and model is not turn):
            continue
        if any(view.can_run([chunk]) for chunk in single_chunks(view, model)):
            return False
    if turn is not None:
        return turn.n_live > 0
    return any(model.n_live for model in view.live_models.values())


def plan(channel: Channel, view: InstanceView, turn: ModelView | None = None) -> Plan:
    """What this channel does for the target: a request of `turn`, or of any model."""
    if channel is Channel.FETCH:
        return fetch(view)
    if channel is Channel.COMPUTE:
        return IDLE
    action = _next_action(view, turn)
    if action is None:
        return IDLE
    if isinstance(action, tuple):
        return Plan(at_once=action)
    return Plan(action) if _CHANNELS[type(action)] is channel else IDLE


def fetch(view: InstanceView) -> Plan:
    """Fetch the most urgent model, unless that would drop a more urgent one from the host cache."""
    if not view.any_on_disk:
        return IDLE
    live = [model for model in view.live_models.values() if model.n_live]
    return eviction.fetch_first(view, sorted(live, key=lambda model: model.deadline_s))


def _next_action(view: InstanceView, turn: ModelView | None) -> Action | None:
    """The next action towards a step of `turn`, or of the most urgent model in memory. None: wait for what
    is in flight."""
    resident = [m for m in view.resident_models.values() if turn is None or m is turn]
    for model in sorted(resident, key=lambda model: model.deadline_s):
        resumable = [r for r in model.away.values() if not r.in_copy and view.can_resume(r.request.id)]
        if resumable:
            return PageIn((_first(resumable).request.id,))
    near = (Residency.HOST, Residency.RESIDENT)
    candidates = view.live_models.values() if turn is None else (turn,)
    models = [m for m in candidates if m.n_live and m.residency in near and not m.is_moving]
    if not models:
        return None
    target = min(models, key=lambda model: model.deadline_s)
    if target.residency is Residency.RESIDENT:
        first = _first(_own(target))
        if first.in_copy:
            return None
        return _make_room(view, target)
    match view.fit(target.facts.id):
        case Fit.NOW:
            return Activate(target.facts.id)
        case Fit.AFTER_COMPACTION:
            return Compact(target.facts.n_bytes)
        case Fit.NO:
            return _make_room(view, target)


def _make_room(view: InstanceView, target: ModelView) -> Action | None:
    """Give up the cheapest thing that can still go, but never the target's most urgent request."""
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
        return (Evict(max(weights, key=lambda m: m.deadline_s).facts.id),)
    free = view.arena_free_bytes
    if target.residency is Residency.RESIDENT and view.can_compact(free):
        return Compact(free)
    own = [r for r in _own(target) if r.device_bytes and not r.in_copy]
    first = _first(_own(target))
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
    return min(requests, key=eviction.due_s)


def _last(requests: Iterable[RequestView]) -> RequestView:
    return max(requests, key=eviction.due_s)
