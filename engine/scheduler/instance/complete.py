"""Completing an operation: its result is recorded in the books and given to the requests that waited for
it."""

from tokenmux.core.cost import StepWork
from tokenmux.core.effects import CopyEnded, ModelLoaded, StepEnded, StepRow
from tokenmux.core.errors import InternalError
from tokenmux.core.event import CopyDone, StepDone
from tokenmux.core.phases import RequestPhase, Residency
from tokenmux.core.plan import Channel
from tokenmux.core.request import FinishReason
from tokenmux.core.started import (
    Started,
    StartedActivation,
    StartedCompaction,
    StartedFetch,
    StartedPageIn,
    StartedPageOut,
    StartedStep,
)
from tokenmux.scheduler.instance import requests, validate
from tokenmux.scheduler.instance.live_state import LiveState
from tokenmux.scheduler.instance.model_state import ModelState
from tokenmux.scheduler.instance.request_state import RequestState
from tokenmux.scheduler.metrics.counting import count_on_time


def step(state: LiveState, event: StepDone) -> Started:
    """A step ended. Returns the operation as it began."""
    started = state.pop(Channel.COMPUTE, event.operation)
    if not isinstance(started, StartedStep):
        raise InternalError(f"operation {event.operation} ended as a step and is none")
    step = started.operation
    validate.step_done(step, event)
    n_iterations = len(event.ends_s)
    finished = dict(event.finished)
    seconds = event.at_s - started.at_s
    row_s = seconds / sum(chunk.n_tokens for chunk in step.chunks)
    rows = []
    n_new_cells = 0
    for chunk in step.chunks:
        request = state.requests[chunk.request]
        end = chunk.start + chunk.n_tokens
        request.in_step = False
        request.share.had_s += row_s * chunk.n_tokens / request.share.weight
        n_prompt = max(0, min(end, request.request.n_prompt) - chunk.start)
        if end == request.n_tokens:
            rows.append(_draw(request, chunk.n_tokens, n_prompt, event.ends_s))
            request.kv.n_computed = request.n_tokens - 1
        else:
            rows.append(StepRow(request.request.tenant, chunk.n_tokens, n_prompt, draws=False))
            request.kv.n_computed = end
        if n_prompt and request.kv.prefix is not None:
            n_new_cells += _give_prefix(state, request)
        if request.n_drawn >= request.request.max_tokens:
            requests.end(state, request, FinishReason.LENGTH)
        elif request.id in finished:
            requests.end(state, request, finished[request.id])
        elif request.to_end:
            requests.end(state, request, *request.to_end)
        else:
            request.model.file(request)
    state.shares.settle()
    state.compute_s += seconds
    state.cost.observe_step(started.model, _mean_work(started.work, n_iterations), seconds / n_iterations)
    state.effects.append(StepEnded(started, event, tuple(rows)))
    if started.id in state.orphans:
        state.orphans.remove(started.id)
        state.ledger.displace(started.model)
    else:
        model = state.models[step.model]
        model.last_used_s = event.at_s
        model.forget_deadlines()
        if n_new_cells:
            state.take_prefixes(model)
    return started


def _give_prefix(state: LiveState, request: RequestState) -> int:
    """Let others have the cells of the request's prompt that are complete. Returns how many are new."""
    n_prompt, grid = request.request.n_prompt, state.device.cell_tokens
    return state.ledger.sharing.give(request.kv, n_prompt, grid, may_swap=not request.in_copy)


def _draw(request: RequestState, n_tokens: int, n_prompt: int, ends_s: tuple[float, ...]) -> StepRow:
    """Record tokens of the request that were drawn at `ends_s`."""
    asked = request.request
    n_on_time = count_on_time(request.deadline_s, asked.service.tpot_s, ends_s)
    since_s = request.since_s
    request.artifact.drawn(
        asked.arrival_s if request.last_token_s is None else request.last_token_s,
        ends_s,
        asked.service.tpot_s,
    )
    request.n_tokens += len(ends_s)
    request.n_on_time += n_on_time
    request.last_token_s = request.since_s = ends_s[-1]
    ttft_s = None
    if request.first_token_s is None:
        request.first_token_s = ends_s[0]
        ttft_s = ends_s[0] - asked.arrival_s
    request.set_deadline()
    return StepRow(asked.tenant, n_tokens, n_prompt, True, n_on_time, since_s, ttft_s)


def _mean_work(work: StepWork, n_iterations: int) -> StepWork:
    """The work of the middle iteration of a repeated step: durations are linear in it."""
    n_prefill, pairs, rows, context, beside_copy = work
    return StepWork(n_prefill, pairs, rows, context + rows * (n_iterations - 1) // 2, beside_copy)


def copy(state: LiveState, event: CopyDone) -> Started:
    """An operation of another channel ended, successfully or not. Returns the operation as it began."""
    channel = next((c for c, s in state.in_flight.items() if s.id == event.operation), None)
    if channel is None:
        raise InternalError(f"operation {event.operation} completed but is not in flight")
    started = state.pop(channel, event.operation)
    seconds = event.at_s - started.at_s
    ok = event.ok
    match started:
        case StartedStep():
            raise InternalError(f"operation {event.operation} ended as a copy and is a step")
        case StartedActivation():
            _activate(state, started, seconds, ok)
            if event.error:
                _forget_images(state, started, event.error)
        case StartedPageIn() | StartedPageOut():
            _page(state, started, ok)
        case StartedCompaction():
            state.ledger.arena.frozen = False
            for model in state.models.values():
                model.is_moving = False
        case StartedFetch():
            state.ledger.cache.end_fetch(started.images, ok)
            fetched = state.models.get(started.operation.model)
            if fetched is not None and not event.superseded:
                _read(state, fetched, state.cost.copy_s(channel, started.n_bytes), event.error)
    if ok and started.n_bytes and not isinstance(started, StartedCompaction):
        state.cost.observe_copy(channel, started.n_bytes, seconds)
    state.effects.append(CopyEnded(started, event))
    return started


def _activate(state: LiveState, started: StartedActivation, seconds: float, ok: bool) -> None:
    for image in started.images:
        state.ledger.cache.unhold(image.id)
    orphaned = started.id in state.orphans
    state.orphans.discard(started.id)
    if orphaned or not ok:
        state.ledger.displace(started.model)
        if not orphaned:
            state.models[started.model.id].stage = None
        return
    model = state.models[started.model.id]
    model.stage = Residency.RESIDENT
    model.stepped_since_load = False
    model.last_used_s = state.now_s
    state.take_prefixes(model)
    model.wanted = False if model.wanted is False else None
    state.file_asked(model)
    state.resident_models[model.facts.id] = model
    exposed_s = max(0.0, seconds - (state.compute_until_now_s() - started.compute_s))
    waited = [request for request in model.requests() if not request.is_paused]
    tenants = tuple(request.request.tenant for request in waited)
    state.effects.append(ModelLoaded(started, seconds, exposed_s, tenants))
    for request in waited:
        request.share.had_s += exposed_s / len(waited) / request.share.weight
    state.shares.settle()
    for request in waited:
        state.tell(request, RequestPhase.PAGED_OUT if request.kv.n_missing else RequestPhase.QUEUED)


def _page(state: LiveState, started: StartedPageIn | StartedPageOut, ok: bool) -> None:
    for request_id, n_computed, transfers in started.paged:
        request = state.requests[request_id]
        request.in_copy = False
        if isinstance(started, StartedPageIn):
            state.ledger.end_page_in(request_id, transfers, ok)
        else:
            state.ledger.end_page_out(request_id, n_computed, ok)
        if request.to_end:
            requests.end(state, request, *request.to_end)
        elif request_id in state.leaving:
            requests.end(state, request, None)
        else:
            request.model.file(request)


def _forget_images(state: LiveState, started: StartedActivation, error: str) -> None:
    """The model cannot be run here from the images in host memory. The next attempt reads them again, and not
    at once, as after a fetch that failed; the host keeps those that other copies read now."""
    cache, model = state.ledger.cache, state.models.get(started.model.id)
    for image in started.images:
        if cache.has(image.id) and image.id not in cache.held:
            cache.drop(image.id)
    if model is not None:
        _read(state, model, state.cost.copy_s(Channel.FETCH, started.n_bytes), error)


def _read(state: LiveState, model: ModelState, fetch_s: float, error: str) -> None:
    """A fetch that should take `fetch_s` ended. If it failed, the requests that waited for it fail too."""
    state.file_load_error(model, error)
    model.fetch_pause_s = max(fetch_s, 2 * model.fetch_pause_s) if error else 0.0
    model.fetch_after_s = state.now_s + model.fetch_pause_s
    for request in list(model.requests()) if error else ():
        requests.end(state, request, FinishReason.FAILED, error)
