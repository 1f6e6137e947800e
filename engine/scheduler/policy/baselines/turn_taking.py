"""Building blocks for policies in which models take turns: bring a model in, evicting others if needed, and
let it step.

The baselines are made of these; they decide whose turn it is, and for how long. If the model whose turn it is
cannot step and the policy's rules make no progress, `rescue` serves it alone. So every turn comes to a step,
however small the memory. A step is not a token yet: a policy that ends a turn before its model has drawn one
may discard for ever what others compute.
"""

from collections.abc import Callable, Collection, Iterable
from math import inf

from tokenmux.core.facts import ModelId
from tokenmux.core.phases import Residency
from tokenmux.core.plan import (
    IDLE,
    AtOnce,
    Channel,
    Chunk,
    Evict,
    PageIn,
    PageOut,
    Plan,
    Step,
)
from tokenmux.scheduler.policy import eviction, rescue
from tokenmux.scheduler.policy.instance_policy import Fit, InstanceView, ModelView, RequestView
from tokenmux.scheduler.policy.steps import as_many_as_fit, repetitions, single_chunks


def take_turn(
    channel: Channel,
    view: InstanceView,
    turn: ModelView,
    rescuer: rescue.Rescue,
    own: Callable[[Channel], Plan],
) -> Plan:
    """The answer of the policy's `own` rules for the channel, unless `turn` cannot step under them.

    If the weights of `turn` are resident, the rules are not asked at all: a prefetch would take again what
    the rescue frees.
    """
    if channel is Channel.FETCH and not view.any_on_disk:
        return IDLE
    if rescuer.is_blocked(view, turn) and (
        turn.residency is Residency.RESIDENT or all(own(c) == IDLE for c in Channel if c is not Channel.FETCH)
    ):
        return rescuer.plan(channel, view, turn) if channel is not Channel.FETCH else fetch(view, turn)
    return own(channel)


def asked(channel: Channel, view: InstanceView) -> Plan:
    """Carry out what operators asked for when there is nothing else to do: unload models, and load those
    that cost no request anything."""
    match channel:
        case Channel.FETCH:
            return eviction.fetch_asked(view)
        case Channel.COPY_IN:
            unwanted = eviction.unwanted(view)
            if unwanted:
                return Plan(at_once=unwanted)
            live = {model for model in view.live_models if view.live_models[model].n_live}
            for model_id in view.asked_models:
                plan = bring_in(view, view.models[model_id], keep={*live, *view.asked_models})
                if plan is not None:
                    return plan
    return IDLE


def step(view: InstanceView, model: ModelView, chunks: list[Chunk], seconds: float) -> Plan:
    """A step of those chunks whose KV finds room, repeated within `seconds`."""
    if not chunks or model.is_moving or model.residency is not Residency.RESIDENT:
        return IDLE
    if not view.can_run(chunks):
        victim = _victim(view, model)
        if victim is not None:
            return Plan(at_once=(victim,))
        # If none of these fits, take any chunk that the model could compute: a rescue only comes when there
        # is none.
        chunks = as_many_as_fit(view, chunks) or as_many_as_fit(view, single_chunks(view, model))
    if not chunks:
        return IDLE
    return Plan(Step(model.facts.id, tuple(chunks), repetitions(view, model, chunks, seconds)))


def bring_in(view: InstanceView, model: ModelView, keep: Collection[ModelId] = ()) -> Plan | None:
    """Make the model resident: evictions (least recently used first) and a copy. None if it must wait, or is
    resident already."""
    if model.residency is not Residency.HOST:
        return None
    victims = [m for m in eviction.evictable(view) if m.facts.id not in keep and m is not model]
    victims.sort(key=lambda m: -m.last_used_s)
    evicted: list[ModelId] = []
    fit = view.fit(model.facts.id)
    while fit is Fit.NO and victims:
        evicted.append(victims.pop().facts.id)
        fit = view.fit(model.facts.id, evicted)
    plan = eviction.load_after(evicted, model, fit)
    if plan is not None or keep:
        return plan
    kv = eviction.droppable_kv(view, keep=model)
    return Plan(at_once=(kv,)) if kv else None


def bring_ahead(view: InstanceView, model: ModelView, turn: ModelView) -> Plan | None:
    """Load the next model's weights beside those of `turn`.

    It is not loaded again before `turn` has stepped: if the KV of `turn` needs the room, the next model had
    to leave, and the two would alternate for ever.
    """
    if model.last_used_s > turn.last_used_s:
        return None
    return bring_in(view, model, keep={turn.facts.id})


def page_in(view: InstanceView, model: ModelView) -> Plan | None:
    """Page in the model's KV that is only on the host, the most urgent request first."""
    absent = [r for r in model.away.values() if not r.in_copy]
    if not absent or model.residency is not Residency.RESIDENT:
        return None
    first = min(absent, key=lambda r: r.due_s)
    if view.can_page_in(first.request.id):
        return Plan(PageIn((first.request.id,)))
    victim = _victim(view, model)
    return Plan(at_once=(victim,)) if victim else None


def _victim(view: InstanceView, model: ModelView) -> AtOnce | None:
    """What gives way to the KV of the model whose turn it is: KV of other models, or the weights of the least
    recently used one."""
    others = [other for other in eviction.evictable(view) if other is not model]
    oldest = min(others, key=lambda m: m.last_used_s, default=None)
    return eviction.droppable_kv(view, keep=model) or (Evict(oldest.facts.id) if oldest else None)


def page_out(view: InstanceView, requests: Iterable[RequestView]) -> Plan:
    """Page out the first of these requests whose KV the host does not have in full."""
    for request in requests:
        if not (request.is_clean or request.in_copy or request.in_step) and view.can_page_out(
            request.request.id
        ):
            return Plan(PageOut((request.request.id,)))
    return IDLE


def fetch(view: InstanceView, turn: ModelView) -> Plan:
    """Fetch the model whose turn it is, then the one with the longest wait. Neither is dropped for a later
    one."""
    others = (model for model in view.live_models.values() if model is not turn)
    return eviction.fetch_first(view, [turn, *sorted(others, key=oldest_arrival_s)])


def oldest_arrival_s(model: ModelView) -> float:
    """When the longest-waiting live request of the model arrived."""
    files = (model.waiting, model.decoding, model.away, model.paused)
    return min((r.request.arrival_s for file in files for r in file.values()), default=inf)
