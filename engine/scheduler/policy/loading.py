"""What copy-in brings next, and which models make room for it: rules 2 and 3 of
`tokenmux.scheduler.policy.slack`.
"""

from tokenmux.core.phases import Residency
from tokenmux.core.plan import IDLE, Activate, Channel, Evict, PageIn, Plan
from tokenmux.scheduler.policy import beginning, eviction
from tokenmux.scheduler.policy.instance_policy import Fit, InstanceView, ModelView
from tokenmux.scheduler.policy.turns import is_runnable

HEADROOM = 1 / 24
"""Share of the arena that stays free beside incoming weights, for KV to grow into. Without it a quarter of a
point is lost at the targets."""

LAST_TO_GO_COPIES = 4.0
"""A model that is late by this many of its load times, and finds no other room, takes the room of the running
model. If the two could never share the arena it does not wait that long: the running model leaves when the
load must begin to be in time. Worth nothing at the targets, 1.5 points in a market's busy hour."""

EVICTION_MARGIN_COPIES = 4.0
"""A victim's next token must be due at least this many of its own reload times after the candidate's. On
Poisson traffic of three seeds (78 models at 0.5 on 11 H100) 1.5 kept 96.5% of tokens on time, 3 kept
97.7%, 4 kept 98.4%, 6 kept 99.0%; but 6 lost tokens when requests are rare."""


def copy_in(view: InstanceView) -> Plan:
    """What the copy-in channel does next, after what an operator wants off the device has left."""
    unwanted = eviction.unwanted(view)
    if unwanted:
        return Plan(at_once=unwanted)
    return _page_in(view) or _load_next(view) or IDLE


def _page_in(view: InstanceView) -> Plan | None:
    """Page in KV of resident models, the most urgent model first: nothing else is missing for them to run."""
    incomplete = [m for m in view.resident_models.values() if m.away]
    for model in sorted(incomplete, key=lambda m: m.due_s):
        absent = [r for r in model.away.values() if not r.in_copy]
        if not absent:
            continue
        first = min(absent, key=lambda r: r.due_s)
        if view.can_page_in(first.request.id):
            return Plan(PageIn((first.request.id,)))
        victim = eviction.droppable_kv(view, model, later_than_s=model.due_s) or eviction.idle_model(view)
        if victim is not None:
            return Plan(at_once=(victim,))
    return None


def _load_next(view: InstanceView) -> Plan | None:
    """Load the least-slack model; what an operator wants loaded only while no live model is absent."""
    absent = [m for m in view.live_models.values() if m.residency is Residency.HOST and m.n_live]
    if absent:
        absent.sort(key=lambda model: model.due_s)
        first = next((model for model in absent if beginning.may_begin(view, model)), None)
        return None if first is None else _load(view, first)
    for model_id in view.asked_models:
        model = view.models[model_id]
        if not model.n_live and model.wanted is not False and model.residency is Residency.HOST:
            plan = _load_weights(view, model)
            if plan is not None:
                return plan
    return None


def _load(view: InstanceView, model: ModelView) -> Plan | None:
    """Load the model's weights, but its KV before them if both find room: so its first steps hold all of its
    requests, and who misses a step needs one of its own later."""
    plan = _load_weights(view, model)
    if plan is None or not isinstance(plan.operation, Activate):
        return plan
    evicted = sum(view.models[e.model].facts.n_bytes for e in plan.at_once if isinstance(e, Evict))
    room = view.arena_free_bytes + evicted - _bytes_to_load(view, model)
    for request in sorted((r for r in model.away.values() if not r.in_copy), key=lambda r: r.due_s):
        n_missing = request.n_tokens * model.facts.kv.token_bytes - request.device_bytes
        if n_missing <= room and view.can_page_in(request.request.id):
            return Plan(PageIn((request.request.id,)), plan.at_once)
    return plan


def _bytes_to_load(view: InstanceView, model: ModelView) -> int:
    return model.facts.n_bytes + int(HEADROOM * view.device.arena_bytes)


def _load_weights(view: InstanceView, model: ModelView) -> Plan | None:
    """Load the weights after the evictions that this takes. None if they must wait."""
    need = _bytes_to_load(view, model)
    victims = _victims(view, model)
    evicted: list[ModelView] = []
    free = view.arena_free_bytes
    while free < need and victims:
        evicted.append(victims.pop())
        free += evicted[-1].facts.n_bytes
    if free < need:
        kv = eviction.droppable_kv(view, model, later_than_s=model.due_s)
        if kv is not None:
            return Plan(at_once=(kv,))
        kept = _next_to_run(view)
        if kept is not None:
            late_s = view.now_s - model.due_s
            together = kept.facts.n_bytes + need <= view.device.arena_bytes
            copies = LAST_TO_GO_COPIES if together else -1.0
            patience_s = copies * view.cost.copy_s(Channel.COPY_IN, model.facts.n_bytes)
            if (
                late_s < patience_s
                or kept.facts.id == eviction.stepping(view)
                or not _may_go(view, kept, model)
            ):
                return None
            evicted.append(kept)
    fit = view.fit(model.facts.id, [victim.facts.id for victim in evicted])
    while fit is Fit.NO and victims and not _is_busy(view):
        evicted.append(victims.pop())
        fit = view.fit(model.facts.id, [victim.facts.id for victim in evicted])
    return eviction.load_after((victim.facts.id for victim in evicted), model, fit)


def _is_busy(view: InstanceView) -> bool:
    """True if an operation in flight will, when it ends, let more be moved inside the arena."""
    return view.in_flight(Channel.COMPUTE) is not None or view.in_flight(Channel.COPY_OUT) is not None


def _next_to_run(view: InstanceView) -> ModelView | None:
    """The resident model that steps now, or will step next. It is kept, so that compute has work during
    copies."""
    running = eviction.stepping(view)
    if running is not None and running in view.resident_models:
        return view.resident_models[running]
    runnable = (model for model in view.resident_models.values() if is_runnable(model))
    return min(runnable, key=lambda model: model.runnable_due_s, default=None)


def _may_go(view: InstanceView, model: ModelView, candidate: ModelView) -> bool:
    """True if a live model may be evicted for the candidate: it has had a turn, and its slack is larger by
    the time of a reload."""
    reload_s = view.cost.copy_s(Channel.COPY_IN, model.facts.n_bytes)
    later = model.due_s > candidate.due_s + EVICTION_MARGIN_COPIES * reload_s
    return bool(candidate.n_live) and model.stepped_since_load and not model.pinned and later


def _victims(view: InstanceView, candidate: ModelView) -> list[ModelView]:
    """Models that may be evicted for the candidate, the best one last."""
    idle: list[ModelView] = []
    waiting: list[ModelView] = []
    kept = _next_to_run(view)
    for model in eviction.evictable(view):
        if candidate.n_live and view.now_s < model.warm_until_s < candidate.due_s:
            continue
        if not model.n_live:
            idle.append(model)
        elif model is not kept and _may_go(view, model, candidate):
            waiting.append(model)
    waiting.sort(key=lambda m: m.due_s)
    idle.sort(key=lambda m: -m.last_used_s)
    return waiting + idle
