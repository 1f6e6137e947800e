"""Completing an operation: what it brought is entered into the books, counted, and given to the requests
that waited for it."""

from tokenmux.core.cost import StepWork
from tokenmux.core.errors import InternalError
from tokenmux.core.event import SUPERSEDED, CopyDone, StepDone
from tokenmux.core.phases import RequestPhase, Residency
from tokenmux.core.plan import Activate, Channel, Compact, Fetch, PageIn, PageOut, Step
from tokenmux.core.request import FinishReason
from tokenmux.core.started import Started
from tokenmux.scheduler.instance import requests, validate
from tokenmux.scheduler.instance.live_state import LiveState
from tokenmux.scheduler.instance.state import ModelState, RequestState
from tokenmux.scheduler.metrics.counters import ServiceCounters, count_on_time


def step(state: LiveState, event: StepDone) -> Started:
    """A step ended; returns how it had begun."""
    started = state.pop(Channel.COMPUTE, event.operation)
    step = started.operation
    assert isinstance(step, Step)
    assert started.model is not None
    validate.step_done(step, event)
    n_iterations = len(event.ends_s)
    finished = dict(event.finished)
    seconds = event.at_s - started.at_s
    counters = state.metrics.of(step.model)
    row_s = seconds / sum(chunk.n_tokens for chunk in step.chunks)
    drawn: dict[tuple[ServiceCounters, float | None], int] = {}
    for chunk in step.chunks:
        request = state.requests[chunk.request]
        request.in_step = False
        request.tenant.gpu_s += row_s * chunk.n_tokens
        request.share.had_s += row_s * chunk.n_tokens / request.share.weight
        was_prompt = max(0, min(chunk.start + chunk.n_tokens, request.request.n_prompt) - chunk.start)
        if was_prompt:
            counters.service.n_prompt_tokens += was_prompt
            request.tenant.n_prompt_tokens += was_prompt
        if chunk.start + chunk.n_tokens == request.n_tokens:
            since = (request.tenant, request.since_s)
            drawn[since] = drawn.get(since, 0) + 1
            _draw(request, counters.service, event.ends_s)
            request.kv.n_computed = request.n_tokens - 1
        else:
            request.kv.n_computed = chunk.start + chunk.n_tokens
        if request.n_drawn >= request.request.max_tokens:
            requests.end(state, request, FinishReason.LENGTH)
        elif request.id in finished:
            requests.end(state, request, finished[request.id])
        elif request.to_end:
            requests.end(state, request, *request.to_end)
        else:
            request.model.file(request)
    state.shares.settle()
    state.metrics.count_drawn(counters.service, drawn, event.ends_s)
    counters.compute_s += seconds
    counters.service.gpu_s += seconds
    state.metrics.busy_s[Channel.COMPUTE] += seconds
    state.metrics.n_steps += n_iterations
    state.cost.observe_step(started.model, _mean_work(started.work, n_iterations), seconds / n_iterations)
    if started.id in state.orphans:
        state.orphans.remove(started.id)
        state.ledger.displace(started.model)
    else:
        model = state.models[step.model]
        model.last_used_s = event.at_s
        model.forget_deadlines()
    return started


def _draw(request: RequestState, model: ServiceCounters, ends_s: tuple[float, ...]) -> None:
    on_time = count_on_time(request.deadline_s, request.request.service.tpot_s, ends_s)
    since_s = request.request.arrival_s if request.last_token_s is None else request.last_token_s
    request.artifact.drawn(since_s, ends_s, request.request.service.tpot_s)
    request.n_tokens += len(ends_s)
    request.n_on_time += on_time
    model.n_tokens_on_time += on_time
    request.tenant.n_tokens_on_time += on_time
    request.last_token_s = request.since_s = ends_s[-1]
    if request.first_token_s is None:
        request.first_token_s = ends_s[0]
        model.ttft.add(ends_s[0] - request.request.arrival_s)
        request.tenant.ttft.add(ends_s[0] - request.request.arrival_s)
    request.set_deadline()


def _mean_work(work: StepWork, n_iterations: int) -> StepWork:
    """The work of the middle iteration of a repeated step: durations are linear in it."""
    return work._replace(context_tokens=work.context_tokens + work.decode_rows * (n_iterations - 1) // 2)


def copy(state: LiveState, event: CopyDone) -> Started:
    """An operation of another channel ended, well or not; returns how it had begun."""
    channel = next((c for c, s in state.in_flight.items() if s.id == event.operation), None)
    if channel is None:
        raise InternalError(f"operation {event.operation} completed but is not in flight")
    started = state.pop(channel, event.operation)
    seconds = event.at_s - started.at_s
    state.metrics.busy_s[channel] += seconds
    ok = not event.error
    state.metrics.n_superseded += event.error == SUPERSEDED
    match started.operation:
        case Activate():
            _activate(state, started, seconds, ok)
        case PageIn() | PageOut():
            _page(state, started, ok)
        case Compact():
            state.ledger.arena.frozen = False
            for model in state.models.values():
                model.is_moving = False
        case Fetch(model_id):
            state.ledger.cache.end_fetch(started.images, ok)
            fetched = state.models.get(model_id)
            if fetched is not None and event.error != SUPERSEDED:
                _fetch(state, fetched, state.cost.copy_s(channel, started.n_bytes), event.error)
    if ok and not started.moves:
        state.metrics.copied_bytes[channel] += started.n_bytes
        if started.n_bytes:
            state.cost.observe_copy(channel, started.n_bytes, seconds)
    return started


def _activate(state: LiveState, started: Started, seconds: float, ok: bool) -> None:
    assert started.model is not None
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
    model.wanted = False if model.wanted is False else None
    state.file_asked(model)
    state.resident_models[model.facts.id] = model
    exposed_s = max(0.0, seconds - (state.compute_busy_s() - state.swap_compute_s))
    waited = [request for request in model.requests() if not request.is_paused]
    counters = state.metrics.of(model.facts.id)
    state.metrics.count_swap(counters, state.swap_reason, started.n_bytes, seconds, exposed_s)
    state.metrics.charge((request.tenant for request in waited), exposed_s)
    for request in waited:
        request.share.had_s += exposed_s / len(waited) / request.share.weight
    state.shares.settle()
    for request in waited:
        state.tell(request, RequestPhase.PAGED_OUT if request.kv.n_missing else RequestPhase.QUEUED)


def _page(state: LiveState, started: Started, ok: bool) -> None:
    for request_id, transfers in started.transfers:
        request = state.requests[request_id]
        request.in_copy = False
        n_computed = state.paging_computed.pop((started.channel, request_id))
        if started.channel is Channel.COPY_IN:
            state.ledger.end_page_in(request_id, transfers, ok)
        else:
            state.ledger.end_page_out(request_id, n_computed, ok)
        if request.to_end:
            requests.end(state, request, *request.to_end)
        else:
            request.model.file(request)


def _fetch(state: LiveState, model: ModelState, fetch_s: float, error: str) -> None:
    """A fetch, which should take so long, came to its end: those who waited for one that failed are told."""
    model.load_error = error
    model.fetch_pause_s = max(fetch_s, 2 * model.fetch_pause_s) if error else 0.0
    model.fetch_after_s = state.now_s + model.fetch_pause_s
    for request in list(model.requests()) if error else ():
        requests.end(state, request, FinishReason.FAILED, error)
