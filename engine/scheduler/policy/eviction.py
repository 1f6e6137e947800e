"""Making room in the arena: whose weights leave, and whose KV.

Evicting weights costs nothing but the copy that brings them back. KV usually stays when its model's weights
leave, since it is small. It is dropped, once the host has it, only if weights could not come in otherwise.
"""

from collections.abc import Iterable, Iterator
from math import inf

from tokenmux.core.facts import ModelId
from tokenmux.core.phases import Residency
from tokenmux.core.plan import IDLE, Activate, Channel, Compact, Drop, Evict, Fetch, Plan, Step
from tokenmux.scheduler.policy.instance_policy import Fit, InstanceView, ModelView, RequestView

_FULL = 0.9
"""KV is written through to the host once the arena is fuller than this share. The rest is room for bursts to
grow into."""


def stepping(view: InstanceView) -> ModelId | None:
    """The model whose step is in flight."""
    step = view.in_flight(Channel.COMPUTE)
    return step.model if isinstance(step, Step) else None


def evictable(view: InstanceView) -> list[ModelView]:
    """Resident models that no operation in flight needs and no operator has pinned."""
    running = stepping(view)
    return [
        model
        for model in view.resident_models.values()
        if not (model.pinned or model.is_moving or model.facts.id == running)
    ]


def load_after(evicted: Iterable[ModelId], model: ModelView, fit: Fit) -> Plan | None:
    """Evict, then load `model`, or compact first if its `fit` wants that. None if it does not fit."""
    evictions = tuple(Evict(victim) for victim in evicted)
    match fit:
        case Fit.NOW:
            return Plan(Activate(model.facts.id), evictions)
        case Fit.AFTER_COMPACTION:
            return Plan(Compact(model.facts.n_bytes), evictions)
        case Fit.NO:
            return None


def idle_model(view: InstanceView) -> Evict | None:
    """The least recently used resident model without waiting requests."""
    idle = [model for model in evictable(view) if not (model.n_live or model.wanted)]
    return Evict(min(idle, key=lambda m: m.last_used_s).facts.id) if idle else None


def unwanted(view: InstanceView) -> tuple[Evict, ...]:
    """Models that an operator wants off the device and that can leave now."""
    if not view.asked_models:
        return ()
    return tuple(Evict(model.facts.id) for model in evictable(view) if model.wanted is False)


def fetch_first(view: InstanceView, models: Iterable[ModelView]) -> Plan:
    """Fetch the first of these models that is only on disk, unless that would drop an earlier one from the
    host cache."""
    cached_before = False
    for model in models:
        cached_before |= model.residency is Residency.HOST
        if model.residency is Residency.DISK and view.can_fetch(model.facts.id):
            if cached_before and view.fetch_would_drop(model.facts.id):
                return IDLE
            return Plan(Fetch(model.facts.id))
    return IDLE


def fetch_asked(view: InstanceView) -> Plan:
    """Fetch what an operator pinned, or wants loaded."""
    for model_id in view.asked_models:
        model = view.models[model_id]
        if model.residency is Residency.DISK and model.wanted is not False and view.can_fetch(model_id):
            return Plan(Fetch(model_id))
    return IDLE


def due_s(request: RequestView) -> float:
    """When a request needs its next token: never, while its client does not read."""
    return inf if request.is_paused else request.due_s


def next_use_s(view: InstanceView, request: RequestView) -> tuple[float, float]:
    """The order in which KV is needed: when its model steps, since all its requests do then. Within a model
    what is due first goes first."""
    if request.is_paused:
        return inf, inf
    return view.models[request.request.model].due_s, request.due_s


def kv_holders(
    view: InstanceView, keep: ModelView | None = None, of_residents: bool = True
) -> Iterator[RequestView]:
    """Requests with KV on the device that no operation in flight uses. Of `keep`, and of resident models
    unless `of_residents`, only the paused ones."""
    for model in view.live_models.values():
        spared = model is keep or not (of_residents or model.residency is not Residency.RESIDENT)
        files = (model.paused,) if spared else (model.paused, model.waiting, model.decoding, model.away)
        for file in files:
            for request in file.values():
                if request.device_bytes and not request.in_step and not request.in_copy:
                    yield request


def latest(requests: Iterable[RequestView]) -> RequestView | None:
    """The request that can wait longest."""
    return max(requests, key=due_s, default=None)


def droppable_kv(
    view: InstanceView, keep: ModelView, later_than_s: float = -inf, of_residents: bool = False
) -> Drop | None:
    """Drop the KV that is needed last, and later than `later_than_s`, among that which the host has in full
    and whose model is not `keep` (or whose request is paused).

    Resident models keep theirs unless `of_residents`: it would come straight back.
    """
    best: RequestView | None = None
    best_s = later_than_s, inf
    for request in kv_holders(view, keep, of_residents):
        if request.is_clean and next_use_s(view, request) > best_s:
            absent = view.models[request.request.model].residency in (Residency.HOST, Residency.DISK)
            if absent or of_residents or request.is_paused:
                best, best_s = request, next_use_s(view, request)
    return Drop(best.request.id) if best else None


def is_short(view: InstanceView) -> bool:
    """True if KV takes up the room of weights: the two largest live models would not fit beside it."""
    weights = sum([model.facts.n_bytes for model in view.resident_models.values()])
    coming = view.in_flight(Channel.COPY_IN)
    if isinstance(coming, Activate):
        weights += view.models[coming.model].facts.n_bytes
    arena_bytes = view.device.arena_bytes
    largest = sorted([model.facts.n_bytes for model in view.live_models.values()])[-2:]
    return arena_bytes - view.arena_free_bytes - weights + sum(largest) > _FULL * arena_bytes
