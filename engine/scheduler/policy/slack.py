"""The default policy: what is due first goes first, on every channel, and copies overlap with steps.

A model's *slack* is the time until the earliest next-token deadline of its requests; one that is late by more
than a little counts as due later (`tokenmux.scheduler.metrics.shares`). The rules, in the order
of the file:

1. Compute runs the resident model with the least slack in short bursts; prefill chunks and decode rows share
   a step. The oldest waiting prompt goes first if that makes no request late: users notice the first token
   most.
2. Copy-in brings back the KV of resident models first, then the weights of the least-slack model that is not
   resident.
3. Room is made by evicting models without requests (least recently used first), then those with the most
   slack. The latter only go if their slack exceeds the candidate's by the time of a few reloads, and once
   they have stepped, so that no two models chase each other out.
4. KV stays on the device when its model leaves. Only if it takes up the room of weights is it written through
   in the background (copy-out) and dropped, that of the model that will step last first.
5. A load gives way to a request that would be late behind it, if those waiting for the load have time
   (`making_way`).
6. While nothing can step, `rescue` takes over: everything serves the most urgent request that could, until it
   has stepped.
"""

from collections.abc import Iterable
from math import inf

from tokenmux.core.cost import StepWork, prefill_work
from tokenmux.core.event import (
    Arrived,
    CopyDone,
    Event,
    ModelAdded,
    ModelRemoved,
)
from tokenmux.core.facts import ModelId
from tokenmux.core.phases import Residency
from tokenmux.core.plan import (
    IDLE,
    Activate,
    Channel,
    Evict,
    Fetch,
    PageIn,
    PageOut,
    Plan,
    Step,
)
from tokenmux.scheduler.policy import beginning, eviction, making_way, rescue
from tokenmux.scheduler.policy.instance_policy import Fit, InstanceView, ModelView, RequestView
from tokenmux.scheduler.policy.steps import (
    as_many_as_fit,
    mixed_chunks,
    must_end,
    repetitions,
    shortest_tpot_s,
    single_chunks,
)

BURST_TPOTS = 2.0
"""Longest burst of decode steps, in TPOTs: 0.2 s at the paper's 100 ms. Copies wait for its end to make
room."""

LATE_BURST_TPOTS = 1.0
"""Shortest burst, in TPOTs, however late other models are: shorter turns only cost decisions."""

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


class SlackPolicy:
    """Deadline order on one instance. Its only state is the set of models not yet fetched from disk, and
    whether the instance was blocked when it last looked."""

    name = "slack"

    def __init__(self) -> None:
        self._unfetched: dict[ModelId, None] = {}
        self._rescue = rescue.Rescue()

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
        if channel is Channel.FETCH and not view.any_on_disk:
            return IDLE
        if self._rescue.is_blocked(view):
            return self._rescue.plan(channel, view)
        match channel:
            case Channel.COMPUTE:
                return _plan_compute(view)
            case Channel.COPY_IN:
                return _plan_copy_in(view)
            case Channel.COPY_OUT:
                return _plan_copy_out(view)
            case Channel.FETCH:
                return _plan_fetch(view, self._unfetched)

    def makes_way(
        self, operation: Activate | Fetch, since_s: float, arrived: Arrived, view: InstanceView
    ) -> bool:
        return making_way.makes_way(operation, since_s, arrived, view)

    def next_to_load(self, view: InstanceView) -> ModelView | None:
        """The live model with the least slack, among those not on the device nor on their way there."""
        there = (Residency.RESIDENT, Residency.LOADING)
        absent = (m for m in view.live_models.values() if m.n_live and m.residency not in there)
        return min(absent, key=lambda model: model.deadline_s, default=None)

    def interrupts(self, step: Step, event: Event, view: InstanceView) -> bool:
        """True if a request that was not in the burst can now run, or one in it must leave. Whoever
        joins a burst late needs steps of its own later."""
        match event:
            case Arrived(_, request):
                return request.model in view.resident_models
            case CopyDone() if view.in_flight(Channel.COPY_IN) is None:
                return _can_be_joined(step, view) or _is_urgent(step, view)
        return must_end(step, event)


def _can_be_joined(step: Step, view: InstanceView) -> bool:
    """True if a request of the stepping model has its KV back since the step began."""
    stepping = view.models.get(step.model)
    return stepping is not None and len(stepping.decoding) > len(step.chunks)


def _is_urgent(step: Step, view: InstanceView) -> bool:
    """True if a model other than the stepping one could run now and is due within a burst."""
    stepping = view.models.get(step.model)
    burst_s = BURST_TPOTS * shortest_tpot_s(view, stepping) if stepping and _is_runnable(stepping) else 0.0
    for model in view.resident_models.values():
        if model.facts.id != step.model and _is_runnable(model):
            slack_s = model.runnable_deadline_s - view.now_s
            if slack_s < max(burst_s, BURST_TPOTS * shortest_tpot_s(view, model)):
                return True
    return False


# ── compute ─────────────────────────────────────────────────────────────────────────────────────────────────


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
        chunks = mixed_chunks(view, model, _prompts(view, model))
        if not view.can_run(chunks):
            victim = (
                eviction.droppable_kv(view, keep=model)
                or eviction.idle_model(view)
                or _later_model(view, model)
            )
            if victim is not None:
                return Plan(at_once=(victim,))
            chunks = as_many_as_fit(view, chunks) or as_many_as_fit(view, single_chunks(view, model))
        if chunks:
            repeat = repetitions(view, model, chunks, _burst_s(view, model, runnable))
            return Plan(Step(model.facts.id, tuple(chunks), repeat))
    return IDLE


def _prompts(view: InstanceView, model: ModelView) -> Iterable[RequestView]:
    """The waiting prompts that may share the model's next step. A chunk of a long one takes several times as
    long as a token may: it waits if a row of the model would be late behind it that is due before it."""
    if not model.waiting:
        return ()
    prompts = beginning.beginnable(view, model)
    if not model.decoding or not any(prompt.is_long for prompt in prompts):
        return prompts
    row_s = min((row.due_s for row in model.decoding.values() if not row.is_deferred), default=inf)
    return [p for p in prompts if not p.is_long or p.due_s < row_s or _chunk_ends_s(view, model, p) < row_s]


def _chunk_ends_s(view: InstanceView, model: ModelView, prompt: RequestView) -> float:
    n_tokens = min(view.device.prefill_chunk_tokens, prompt.n_tokens - prompt.n_computed)
    return view.now_s + view.cost.step_s(model.facts, prefill_work(prompt.n_computed, n_tokens))


def _later_model(view: InstanceView, model: ModelView) -> Evict | None:
    """Evict the resident model that can wait longest, if it is due after `model`: KV cannot grow between
    too many residents."""
    later = [m for m in eviction.evictable(view) if m.deadline_s > model.deadline_s and m.stepped_since_load]
    return Evict(max(later, key=lambda m: m.deadline_s).facts.id) if later else None


def _early_prefill(view: InstanceView, runnable: list[ModelView]) -> ModelView | None:
    """The model of the oldest waiting prompt, if computing that first makes no request late."""
    if len(runnable) < 2:
        return None
    oldest, oldest_s = None, inf
    for model in runnable:
        for request in model.waiting.values():
            if request.request.arrival_s < oldest_s:
                oldest, oldest_s = model, request.request.arrival_s
    if oldest is None:
        return None
    others_s = min(m.runnable_deadline_s for m in runnable if m is not oldest) - view.now_s
    prompt = max(r.n_tokens - r.n_computed for r in oldest.waiting.values())
    needed_s = view.cost.step_s(oldest.facts, StepWork(prefill_tokens=prompt, prefill_pairs=prompt**2 // 2))
    return oldest if others_s > needed_s + shortest_tpot_s(view, oldest) else None


def _burst_s(view: InstanceView, model: ModelView, runnable: list[ModelView]) -> float:
    """How long the model may step before others are asked: until one of them would be late, within bounds."""
    tpot_s = shortest_tpot_s(view, model)
    others_s = min((m.runnable_deadline_s for m in runnable if m is not model), default=inf) - view.now_s
    return min(BURST_TPOTS * tpot_s, max(others_s, LATE_BURST_TPOTS * tpot_s))


# ── copy-in ─────────────────────────────────────────────────────────────────────────────────────────────────


def _plan_copy_in(view: InstanceView) -> Plan:
    unwanted = eviction.unwanted(view)
    if unwanted:
        return Plan(at_once=unwanted)
    return _page_in(view) or _activate(view) or IDLE


def _page_in(view: InstanceView) -> Plan | None:
    """Page in KV of resident models, the most urgent model first: nothing else is missing for them to run."""
    incomplete = [m for m in view.resident_models.values() if m.away]
    for model in sorted(incomplete, key=lambda m: m.deadline_s):
        absent = [r for r in model.away.values() if not r.in_copy]
        if not absent:
            continue
        first = min(absent, key=lambda r: r.due_s)
        if view.can_page_in(first.request.id):
            return Plan(PageIn((first.request.id,)))
        victim = eviction.droppable_kv(view, model, later_than_s=model.deadline_s) or eviction.idle_model(
            view
        )
        if victim is not None:
            return Plan(at_once=(victim,))
    return None


def _activate(view: InstanceView) -> Plan | None:
    """Load the weights of the least-slack model; other models only if no request pays for it."""
    absent = [m for m in view.live_models.values() if m.residency is Residency.HOST and m.n_live]
    if absent:
        absent.sort(key=lambda model: model.deadline_s)
        first = next((model for model in absent if beginning.may_begin(view, model)), None)
        return None if first is None else _make_room(view, first)
    for model_id in view.asked_models:
        model = view.models[model_id]
        if not model.n_live and model.wanted is not False and model.residency is Residency.HOST:
            plan = _make_room(view, model)
            if plan is not None:
                return plan
    return None


def _make_room(view: InstanceView, model: ModelView) -> Plan | None:
    """Activate the model after the evictions that this takes. None if it must wait."""
    need = model.facts.n_bytes + int(HEADROOM * view.device.arena_bytes)
    victims = _victims(view, model)
    evicted: list[ModelView] = []
    free = view.arena_free_bytes
    while free < need and victims:
        evicted.append(victims.pop())
        free += evicted[-1].facts.n_bytes
    if free < need:
        kv = eviction.droppable_kv(view, model, later_than_s=model.deadline_s)
        if kv is not None:
            return Plan(at_once=(kv,))
        kept = _next_to_run(view)
        if kept is not None:
            late_s = view.now_s - model.deadline_s
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
    runnable = (model for model in view.resident_models.values() if _is_runnable(model))
    return min(runnable, key=lambda model: model.runnable_deadline_s, default=None)


def _may_go(view: InstanceView, model: ModelView, candidate: ModelView) -> bool:
    """True if a live model may be evicted for the candidate: it has had a turn, and its slack is larger by
    the time of a reload."""
    reload_s = view.cost.copy_s(Channel.COPY_IN, model.facts.n_bytes)
    later = model.deadline_s > candidate.deadline_s + EVICTION_MARGIN_COPIES * reload_s
    return bool(candidate.n_live) and model.stepped_since_load and not model.pinned and later


def _victims(view: InstanceView, candidate: ModelView) -> list[ModelView]:
    """Models that may be evicted for the candidate, the best one last."""
    idle: list[ModelView] = []
    waiting: list[ModelView] = []
    kept = _next_to_run(view)
    for model in eviction.evictable(view):
        if candidate.n_live and view.now_s < model.warm_until_s < candidate.deadline_s:
            continue
        if not model.n_live:
            idle.append(model)
        elif model is not kept and _may_go(view, model, candidate):
            waiting.append(model)
    waiting.sort(key=lambda m: m.deadline_s)
    idle.sort(key=lambda m: -m.last_used_s)
    return waiting + idle


# ── copy-out and fetch ──────────────────────────────────────────────────────────────────────────────────────


def _plan_copy_out(view: InstanceView) -> Plan:
    """If memory is short, write through KV that can wait longest: paused requests first, then models that
    are not resident."""
    resident_too = _all_paused(view)
    if not (resident_too or eviction.is_short(view)):
        return IDLE
    best: RequestView | None = None
    for request in eviction.kv_holders(view, of_residents=resident_too):
        if request.is_clean or (
            best is not None and eviction.next_use_s(view, request) <= eviction.next_use_s(view, best)
        ):
            continue
        if view.can_page_out(request.request.id):
            best = request
    return Plan(PageOut((best.request.id,))) if best else IDLE


def _all_paused(view: InstanceView) -> bool:
    """True if all requests are paused and nothing runs or comes in: then even KV of resident models may go.

    While requests wait that cannot run, `Rescue.is_blocked` is true, and its plan was taken before.
    """
    if view.in_flight(Channel.COMPUTE) is not None or view.in_flight(Channel.COPY_IN) is not None:
        return False
    return bool(view.live_models) and not any(model.n_live for model in view.live_models.values())


def _plan_fetch(view: InstanceView, unfetched: Iterable[ModelId]) -> Plan:
    """Fetch what requests wait for, by slack; then, while the host cache has room to spare, new models."""
    urgent = rescue.fetch(view)
    if urgent.operation is not None:
        return urgent
    asked = eviction.fetch_asked(view)
    if asked.operation is not None:
        return asked
    for model_id in unfetched:
        is_on_disk = view.models[model_id].residency is Residency.DISK
        if is_on_disk and view.can_fetch(model_id) and not view.fetch_would_drop(model_id):
            return Plan(Fetch(model_id))
    return IDLE
