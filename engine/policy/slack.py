"""The default policy: whatever is due first goes first, on every channel, and copies overlap with steps.

A model's *slack* is the time until the earliest next-token deadline of its requests. Rules, in the order of the file:

1. Compute runs the resident model with the least slack in short bursts; prefill chunks and decode rows share a step. Waiting
   prompts go first where that endangers nobody's deadline.
2. Copy-in brings back the KV of resident models first, then the weights of the least-slack model that is not resident.
3. Room is made by evicting models without requests (least recently used), then those whose next token is due farthest
   away, and these only by a margin, so that no two models chase each other out.
4. Copy-out writes KV through to the host in the background when memory is short, so that giving it up costs nothing.
5. If nothing can move, the request that can wait longest gives up its KV.

Every constant is a multiple of a step's cost, a copy's cost, or the service level.
"""

from collections.abc import Iterable, Iterator
from math import inf

from tokenmux.engine.core.cost import StepWork
from tokenmux.engine.core.event import Arrived, Cancelled, CopyDone, Event, ModelAdded, ModelRemoved, Paused
from tokenmux.engine.core.facts import ModelId
from tokenmux.engine.core.message import Residency
from tokenmux.engine.core.plan import (
    IDLE,
    Activate,
    Channel,
    Chunk,
    Compact,
    Discard,
    Drop,
    Evict,
    Fetch,
    PageIn,
    PageOut,
    Plan,
    Step,
)
from tokenmux.engine.policy.interface import Fit, InstanceView, ModelView, RequestView

BURST_TPOTS = 6.0
"""A burst of decode steps lasts this many TPOTs at most: 0.6 s at the paper's 100 ms. Results are flat from 3 to 12."""

EVICTION_MARGIN_COPIES = 1.0
"""A victim's next token must be due this many of its own reload times after the candidate's."""


class SlackPolicy:
    """Deadline order on one instance. All it remembers is which models nobody has fetched from disk yet."""

    name = "slack"

    def __init__(self) -> None:
        self._unfetched: dict[ModelId, None] = {}

    def on_event(self, event: Event, view: InstanceView) -> None:
        match event:
            case ModelAdded(_, facts):
                self._unfetched[facts.id] = None
            case ModelRemoved(_, model_id):
                self._unfetched.pop(model_id, None)
            case CopyDone() if self._unfetched:
                here = [m for m in self._unfetched if view.models[m].residency is not Residency.DISK]
                for model_id in here:
                    del self._unfetched[model_id]

    def plan(self, channel: Channel, view: InstanceView) -> Plan:
        match channel:
            case Channel.COMPUTE:
                return _plan_compute(view)
            case Channel.COPY_IN:
                return _plan_copy_in(view)
            case Channel.COPY_OUT:
                return _plan_copy_out(view)
            case Channel.FETCH:
                return _plan_fetch(view, self._unfetched)

    def interrupts(self, step: Step, event: Event, view: InstanceView) -> bool:
        """Ask again when somebody new can run, or when a request in the burst must leave it."""
        match event:
            case Arrived(_, request):
                return request.model in view.resident_models
            case CopyDone():
                return any(_is_runnable(m) for m in view.resident_models.values() if m.facts.id != step.model)
            case Cancelled() | Paused():
                return any(chunk.request == event.request for chunk in step.chunks)
            case ModelRemoved():
                return True
        return False


# ── compute ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _is_runnable(model: ModelView) -> bool:
    return bool(model.waiting or model.decoding) and not model.is_moving


def _plan_compute(view: InstanceView) -> Plan:
    runnable = [model for model in view.resident_models.values() if _is_runnable(model)]
    runnable.sort(key=lambda model: model.runnable_deadline_s)
    early = _early_prefill(view, runnable)
    if early is not None:
        runnable.remove(early)
        runnable.insert(0, early)
    for model in runnable:
        chunks = _prefill_chunks(view, model)
        chunks += [Chunk(r.request.id, r.n_tokens - 1, 1) for r in model.decoding.values()]
        if not view.can_run(chunks):
            due_s = model.runnable_deadline_s
            victim = _forgettable_kv(view, keep=model, later_than_s=due_s) or _idle_model(view)
            if victim is not None:
                return Plan(at_once=(victim,))
            chunks = _as_many_as_fit(view, chunks)
        if chunks:
            return Plan(Step(model.facts.id, tuple(chunks), _repeat(view, model, chunks, runnable)))
    return _last_resort(view)


def _early_prefill(view: InstanceView, runnable: list[ModelView]) -> ModelView | None:
    """The model of the oldest waiting prompt, if computing it first makes nobody late: users feel the first token most."""
    if len(runnable) < 2:
        return None
    waiting = [(min(r.request.arrival_s for r in m.waiting.values()), m) for m in runnable if m.waiting]
    if not waiting:
        return None
    _, oldest = min(waiting, key=lambda pair: pair[0])
    others_s = min(m.runnable_deadline_s for m in runnable if m is not oldest) - view.now_s
    prompt = max(r.n_tokens - r.n_computed for r in oldest.waiting.values())
    needed_s = view.cost.step_s(oldest.facts, StepWork(prefill_tokens=prompt, prefill_pairs=prompt**2 // 2))
    return oldest if others_s > needed_s + _shortest_tpot_s(oldest) else None


def _prefill_chunks(view: InstanceView, model: ModelView) -> list[Chunk]:
    """Chunks of waiting requests, most urgent first, that fill one cell of the prefill grid."""
    grid = view.device.prefill_chunk_tokens
    budget = grid
    chunks: list[Chunk] = []
    for request in sorted(model.waiting.values(), key=lambda r: r.deadline_s):
        start = request.n_computed
        end = min(request.n_tokens, start - start % grid + grid)
        if end > request.request.n_prompt > start:
            end = min(request.n_tokens, start + grid)
        if chunks and end - start > budget:
            break
        chunks.append(Chunk(request.request.id, start, end - start))
        budget -= end - start
        if budget <= 0:
            break
    return chunks


def _as_many_as_fit(view: InstanceView, chunks: list[Chunk]) -> list[Chunk]:
    """The most urgent chunks for whose KV there is room."""
    fitting: list[Chunk] = []
    for chunk in sorted(chunks, key=lambda c: view.requests[c.request].deadline_s):
        if view.can_run([*fitting, chunk]):
            fitting.append(chunk)
    return fitting


def _repeat(view: InstanceView, model: ModelView, chunks: list[Chunk], runnable: list[ModelView]) -> int:
    """How often a decode step is repeated: a burst, cut short where another model's token would come late."""
    requests = [view.requests[chunk.request] for chunk in chunks]
    if any(c.n_tokens > 1 or r.n_tokens != c.start + 1 for c, r in zip(chunks, requests, strict=True)):
        return 1
    work = StepWork(decode_rows=len(chunks), context_tokens=sum(r.n_tokens for r in requests))
    step_s = view.cost.step_s(model.facts, work)
    others_s = min((m.runnable_deadline_s for m in runnable if m is not model), default=inf) - view.now_s
    burst_s = min(BURST_TPOTS * _shortest_tpot_s(model), max(others_s, 2 * step_s))
    left = min(r.request.max_tokens - r.n_drawn for r in requests)
    repeat = max(1, min(left, int(burst_s / step_s)))
    while repeat > 1 and not view.can_run(chunks, repeat):
        repeat //= 2
    return repeat


def _shortest_tpot_s(model: ModelView) -> float:
    requests = (*model.waiting.values(), *model.decoding.values())
    return min(r.request.service.tpot_s for r in requests)


def _last_resort(view: InstanceView) -> Plan:
    """Nothing can run. If nothing is under way either, make room for the most urgent model whatever it costs."""
    if any(view.in_flight(channel) is not None for channel in Channel):
        return IDLE
    live = [model for model in view.live_models.values() if model.n_live]
    if not live:
        return IDLE
    first = min(live, key=lambda model: model.deadline_s)
    if first.residency is Residency.DISK:
        return IDLE
    action = (
        _forgettable_kv(view, keep=first)
        or _evictable(view, for_model=first)
        or _discardable(view, keep=first)
    )
    return Plan(at_once=(action,)) if action else IDLE


# ── copy-in ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _plan_copy_in(view: InstanceView) -> Plan:
    asked = (view.models[model_id] for model_id in view.asked_models)
    unwanted = [
        m for m in asked if m.wanted is False and m.residency is Residency.RESIDENT and not _in_use(view, m)
    ]
    if unwanted:
        return Plan(at_once=tuple(Evict(model.facts.id) for model in unwanted))
    return _page_in(view) or _activate(view) or IDLE


def _page_in(view: InstanceView) -> Plan | None:
    """KV of resident models, the most urgent model's first: their weights are there and wait for nothing else."""
    resident = sorted((m for m in view.resident_models.values() if m.away), key=lambda m: m.deadline_s)
    for model in resident:
        chosen: list[RequestView] = []
        for request in sorted(model.away.values(), key=lambda r: r.deadline_s):
            if request.in_copy:
                continue
            if not view.can_page_in(request.request.id):
                break
            chosen.append(request)
            break
        if chosen:
            return Plan(PageIn(tuple(r.request.id for r in chosen)))
        if not all(r.in_copy for r in model.away.values()):
            victim = _forgettable_kv(view, keep=model, later_than_s=model.deadline_s) or _idle_model(view)
            if victim is not None:
                return Plan(at_once=(victim,))
    return None


def _activate(view: InstanceView) -> Plan | None:
    absent = [m for m in view.live_models.values() if m.n_live and m.residency is Residency.HOST]
    absent.sort(key=lambda model: model.deadline_s)
    asked = [view.models[m] for m in view.asked_models]
    quiet = [m for m in asked if not m.n_live and m.wanted is not False and m.residency is Residency.HOST]
    for model in (*absent, *quiet):
        plan = _make_room_for_weights(view, model)
        if plan is not None:
            return plan
        if model.deadline_s < view.now_s:
            # Once a model is late, nobody less urgent takes the room that is coming free for it.
            return None
    return None


def _make_room_for_weights(view: InstanceView, model: ModelView) -> Plan | None:
    """Activate the model, behind whatever evictions that takes; None if it must wait."""
    evicted: list[ModelView] = []
    candidates = _victims(view, model, margin=True)
    while True:
        fit = view.fit(model.facts.id, [victim.facts.id for victim in evicted])
        if fit is not Fit.NO:
            break
        victim = next(candidates, None)
        if victim is None:
            kv = _forgettable_kv(view, keep=model, later_than_s=model.deadline_s)
            return Plan(at_once=(kv,)) if kv else None
        evicted.append(victim)
    evictions = tuple(Evict(victim.facts.id) for victim in evicted)
    if fit is Fit.NOW:
        return Plan(Activate(model.facts.id), evictions)
    return Plan(Compact(model.facts.n_bytes), evictions)


# ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _in_use(view: InstanceView, model: ModelView) -> bool:
    step = view.in_flight(Channel.COMPUTE)
    return model.is_moving or (isinstance(step, Step) and step.model == model.facts.id)


def _victims(view: InstanceView, candidate: ModelView, margin: bool) -> Iterator[ModelView]:
    """Models to evict for the candidate's sake, best first: unused ones by age, then the farthest next token."""
    free = [m for m in view.resident_models.values() if not (m.pinned or _in_use(view, m) or m is candidate)]
    yield from sorted((m for m in free if not m.n_live), key=lambda m: m.last_used_s)
    if not candidate.n_live:
        return
    for model in sorted((m for m in free if m.n_live), key=lambda m: -m.deadline_s):
        reload_s = view.cost.copy_s(Channel.COPY_IN, model.facts.n_bytes)
        safe = model.deadline_s > candidate.deadline_s + EVICTION_MARGIN_COPIES * reload_s
        if not margin or (safe and model.stepped_since_load):
            yield model


def _evictable(view: InstanceView, for_model: ModelView) -> Evict | None:
    victim = next(_victims(view, for_model, margin=False), None)
    return Evict(victim.facts.id) if victim else None


def _idle_model(view: InstanceView) -> Evict | None:
    """The least recently used resident model that nobody waits for."""
    idle = [
        m for m in view.resident_models.values() if not (m.n_live or m.pinned or m.wanted or _in_use(view, m))
    ]
    return Evict(min(idle, key=lambda m: m.last_used_s).facts.id) if idle else None


def _forgettable_kv(view: InstanceView, keep: ModelView, later_than_s: float = -inf) -> Drop | None:
    """The request of another model, or a paused one, that waits longest and whose KV the host has in full."""
    best: RequestView | None = None
    for request in _kv_holders(view, keep):
        if (
            request.is_clean
            and _due_s(request) > later_than_s
            and (best is None or _due_s(request) > _due_s(best))
        ):
            best = request
    return Drop(best.request.id) if best else None


def _discardable(view: InstanceView, keep: ModelView) -> Discard | None:
    """The request that can wait longest gives up its KV: of another model first, of the same model if it must be."""
    holders = [r for r in _kv_holders(view, keep) if not view.can_page_out(r.request.id)]
    if not holders:
        own = [
            r for r in (*keep.waiting.values(), *keep.decoding.values()) if r.device_bytes and not r.in_copy
        ]
        holders = own if len(own) > 1 else []
    return Discard(max(holders, key=_due_s).request.id) if holders else None


def _kv_holders(view: InstanceView, keep: ModelView) -> Iterator[RequestView]:
    for model in view.live_models.values():
        files = (
            (model.paused,) if model is keep else (model.paused, model.waiting, model.decoding, model.away)
        )
        for file in files:
            for request in file.values():
                if request.device_bytes and not request.in_step and not request.in_copy:
                    yield request


def _due_s(request: RequestView) -> float:
    return inf if request.is_paused else request.deadline_s


# ── copy-out and fetch ───────────────────────────────────────────────────────────────────────────────────────────


def _plan_copy_out(view: InstanceView) -> Plan:
    """Under memory pressure write through what can wait longest: paused readers, then models that are not resident."""
    if not _is_short(view):
        return IDLE
    resident_too = _is_blocked(view)
    best: RequestView | None = None
    for model in view.live_models.values():
        here = model.residency is Residency.RESIDENT and not resident_too
        files = (model.paused,) if here else (model.paused, model.waiting, model.decoding, model.away)
        for file in files:
            for request in file.values():
                if request.is_clean or request.in_copy or request.in_step or not request.device_bytes:
                    continue
                if (best is None or _due_s(request) > _due_s(best)) and view.can_page_out(request.request.id):
                    best = request
    return Plan(PageOut((best.request.id,))) if best else IDLE


def _is_short(view: InstanceView) -> bool:
    """Whether somebody who lives here lacks room, or soon will."""
    if view.arena_free_bytes < view.device.arena_bytes // 8:
        return True
    return any(model.residency is not Residency.RESIDENT for model in view.live_models.values())


def _is_blocked(view: InstanceView) -> bool:
    """Whether nothing at all can run now: then even resident models' KV may have to go."""
    for model in view.resident_models.values():
        requests = (*model.waiting.values(), *model.decoding.values())
        if any(view.can_run([Chunk(r.request.id, r.n_computed, 1)]) for r in requests):
            return False
    return view.in_flight(Channel.COMPUTE) is None and view.in_flight(Channel.COPY_IN) is None


def _plan_fetch(view: InstanceView, unfetched: Iterable[ModelId]) -> Plan:
    """From disk: what somebody waits for, by slack; then, while the host cache has room to spare, what is new."""
    asked = [view.models[m] for m in view.asked_models]
    urgent = sorted((m for m in view.live_models.values() if m.n_live), key=lambda model: model.deadline_s)
    for model in (*urgent, *asked):
        if model.residency is Residency.DISK and view.can_fetch(model.facts.id):
            return Plan(Fetch(model.facts.id))
    for model_id in unfetched:
        if view.models[model_id].residency is Residency.DISK and not view.fetch_would_drop(model_id):
            return Plan(Fetch(model_id))
    return IDLE
