"""For policies in which models take turns: bring one model in, whoever has to go for it, and let it step.

The baselines are built of these. Whose turn it is, and for how long, is theirs to say.
"""

from collections.abc import Collection, Iterable

from tokenmux.engine.core.facts import ModelId
from tokenmux.engine.core.message import Residency
from tokenmux.engine.core.plan import (
    IDLE,
    Activate,
    AtOnce,
    Channel,
    Chunk,
    Compact,
    Evict,
    Fetch,
    PageIn,
    PageOut,
    Plan,
    Step,
)
from tokenmux.engine.policy import room
from tokenmux.engine.policy.interface import Fit, InstanceView, ModelView, RequestView
from tokenmux.engine.policy.steps import as_many_as_fit, repetitions


def step(view: InstanceView, model: ModelView, chunks: list[Chunk], seconds: float) -> Plan:
    """A step of these chunks, repeated within `seconds`; as many of them as find room for their KV."""
    if not chunks or model.is_moving or model.residency is not Residency.RESIDENT:
        return IDLE
    if not view.can_run(chunks):
        victim = _victim(view, model)
        if victim is not None:
            return Plan(at_once=(victim,))
        chunks = as_many_as_fit(view, chunks)
    if not chunks:
        return IDLE
    return Plan(Step(model.facts.id, tuple(chunks), repetitions(view, model, chunks, seconds)))


def bring_in(view: InstanceView, model: ModelView, keep: Collection[ModelId] = ()) -> Plan | None:
    """What makes the model resident: evictions (least recently used first) and a copy; None if it must wait, or is there."""
    if model.residency is not Residency.HOST:
        return None
    victims = [m for m in room.evictable(view) if m.facts.id not in keep and m is not model]
    victims.sort(key=lambda m: -m.last_used_s)
    evicted: list[ModelId] = []
    fit = view.fit(model.facts.id)
    while fit is Fit.NO and victims:
        evicted.append(victims.pop().facts.id)
        fit = view.fit(model.facts.id, evicted)
    evictions = tuple(Evict(victim) for victim in evicted)
    match fit:
        case Fit.NOW:
            return Plan(Activate(model.facts.id), evictions)
        case Fit.AFTER_COMPACTION:
            return Plan(Compact(model.facts.n_bytes), evictions)
        case Fit.NO:
            kv = room.droppable_kv(view, keep=model)
            return Plan(at_once=(kv,)) if kv and not keep else None


def page_in(view: InstanceView, model: ModelView) -> Plan | None:
    """The model's KV that is only on the host, the most urgent request first."""
    absent = [r for r in model.away.values() if not r.in_copy]
    if not absent or model.residency is not Residency.RESIDENT:
        return None
    first = min(absent, key=lambda r: r.deadline_s)
    if view.can_page_in(first.request.id):
        return Plan(PageIn((first.request.id,)))
    victim = _victim(view, model)
    return Plan(at_once=(victim,)) if victim else None


def _victim(view: InstanceView, model: ModelView) -> AtOnce | None:
    """Who makes room for the KV of the model whose turn it is: KV of others, or the weights of the least recently used."""
    others = [other for other in room.evictable(view) if other is not model]
    oldest = min(others, key=lambda m: m.last_used_s, default=None)
    return room.droppable_kv(view, keep=model) or (Evict(oldest.facts.id) if oldest else None)


def page_out(view: InstanceView, requests: Iterable[RequestView]) -> Plan:
    """The first of these whose KV the host does not have in full."""
    for request in requests:
        if not (request.is_clean or request.in_copy or request.in_step) and view.can_page_out(
            request.request.id
        ):
            return Plan(PageOut((request.request.id,)))
    return IDLE


def fetch_oldest(view: InstanceView) -> Plan:
    """From disk what somebody has waited for longest."""
    absent = [
        m for m in view.live_models.values() if m.residency is Residency.DISK and view.can_fetch(m.facts.id)
    ]
    if not absent:
        return IDLE
    return Plan(Fetch(min(absent, key=oldest_arrival_s).facts.id))


def oldest_arrival_s(model: ModelView) -> float:
    """When the longest-waiting live request of the model arrived."""
    files = (model.waiting, model.decoding, model.away, model.paused)
    return min(r.request.arrival_s for file in files for r in file.values())


def last_resort(view: InstanceView) -> Plan:
    """Nothing can run. If nothing is under way either, make room for the most urgent model whatever it costs."""
    if any(view.in_flight(channel) is not None for channel in Channel):
        return IDLE
    live = [m for m in view.live_models.values() if m.n_live and m.residency is not Residency.DISK]
    if not live:
        return IDLE
    first = min(live, key=lambda model: model.deadline_s)
    others = [model for model in room.evictable(view) if model is not first]
    furthest = max(others, key=lambda model: model.deadline_s, default=None)
    action = (
        room.droppable_kv(view, keep=first)
        or (Evict(furthest.facts.id) if furthest else None)
        or room.droppable_kv(view, keep=first, of_residents=True)
        or room.discardable_kv(view, keep=first)
    )
    return Plan(at_once=(action,)) if action else IDLE
