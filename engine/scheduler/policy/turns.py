"""Whose turn it is to compute, what its step holds, and for how long no other model is asked: rule 1 of
`tokenmux.scheduler.policy.slack`.
"""

from collections.abc import Iterable
from math import inf

from tokenmux.core.cost import StepWork, prefill_work
from tokenmux.core.plan import IDLE, Evict, Plan, Step
from tokenmux.scheduler.policy import beginning, eviction
from tokenmux.scheduler.policy.instance_policy import InstanceView, ModelView, RequestView
from tokenmux.scheduler.policy.steps import (
    as_many_as_fit,
    mixed_chunks,
    repetitions,
    shortest_tpot_s,
    single_chunks,
)

BURST_TPOTS = 2.0
"""Longest burst of decode steps, in TPOTs: 0.2 s at the paper's 100 ms. Copies wait for its end to make
room."""

LATE_BURST_TPOTS = 1.0
"""Shortest burst, in TPOTs, however late other models are: shorter turns only cost decisions."""


def is_runnable(model: ModelView) -> bool:
    return bool(model.waiting or model.decoding) and not model.is_moving


def compute(view: InstanceView) -> Plan:
    """The next step: of the most urgent model that can step, or of one whose oldest prompt may go first."""
    runnable = [model for model in view.resident_models.values() if is_runnable(model)]
    runnable.sort(key=lambda model: model.runnable_due_s)
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
    later = [m for m in eviction.evictable(view) if m.due_s > model.due_s and m.stepped_since_load]
    return Evict(max(later, key=lambda m: m.due_s).facts.id) if later else None


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
    others_s = min(m.runnable_due_s for m in runnable if m is not oldest) - view.now_s
    prompt = max(r.n_tokens - r.n_computed for r in oldest.waiting.values())
    needed_s = view.cost.step_s(oldest.facts, StepWork(prefill_tokens=prompt, prefill_pairs=prompt**2 // 2))
    return oldest if others_s > needed_s + shortest_tpot_s(view, oldest) else None


def _burst_s(view: InstanceView, model: ModelView, runnable: list[ModelView]) -> float:
    """How long the model may step before others are asked: until one of them would be late, within bounds."""
    tpot_s = shortest_tpot_s(view, model)
    others_s = min((m.runnable_due_s for m in runnable if m is not model), default=inf) - view.now_s
    return min(BURST_TPOTS * tpot_s, max(others_s, LATE_BURST_TPOTS * tpot_s))


def can_be_joined(step: Step, view: InstanceView) -> bool:
    """True if a request of the stepping model has its KV back since the step began."""
    stepping = view.models.get(step.model)
    return stepping is not None and len(stepping.decoding) > len(step.chunks)


def is_urgent(step: Step, view: InstanceView) -> bool:
    """True if a model other than the stepping one could run now and is due within a burst."""
    stepping = view.models.get(step.model)
    burst_s = BURST_TPOTS * shortest_tpot_s(view, stepping) if stepping and is_runnable(stepping) else 0.0
    for model in view.resident_models.values():
        if model.facts.id != step.model and is_runnable(model):
            slack_s = model.runnable_due_s - view.now_s
            if slack_s < max(burst_s, BURST_TPOTS * shortest_tpot_s(view, model)):
                return True
    return False
