"""Beginning an operation: it is checked, recorded in the books, and becomes a `Started` value for a body to
carry out."""

from math import inf

from tokenmux.core.cost import StepWork
from tokenmux.core.errors import IllegalPlan
from tokenmux.core.phases import RequestPhase, Residency
from tokenmux.core.plan import Activate, Channel, Compact, Fetch, Operation, PageIn, PageOut, Step
from tokenmux.core.request import RequestId
from tokenmux.core.started import (
    PagedRequest,
    Started,
    StartedActivation,
    StartedCompaction,
    StartedFetch,
    StartedPageIn,
    StartedPageOut,
    StartedStep,
    SwapReason,
)
from tokenmux.scheduler.instance import validate
from tokenmux.scheduler.instance.live_state import LiveState
from tokenmux.scheduler.instance.model_state import ModelState


def begin(state: LiveState, channel: Channel, operation: Operation) -> None:
    """Begin an operation. Raises IllegalPlan if it is not allowed now."""
    validate.channel(channel, operation)
    started: Started
    match operation:
        case Step():
            started = _step(state, operation)
        case Activate(model_id):
            started = _activate(state, state.model(model_id), operation)
        case PageIn():
            started = _page_in(state, operation)
        case PageOut():
            started = _page_out(state, operation)
        case Compact():
            started = _compact(state, operation)
        case Fetch(model_id):
            started = _fetch(state, state.model(model_id), operation)
    state.in_flight[channel] = started
    state.n_started += 1
    state.effects.append(started)


def _step(state: LiveState, step: Step) -> StartedStep:
    model = state.model(step.model)
    validate.step(state, model, step)
    for chunk in step.chunks:
        request = state.requests[chunk.request]
        state.ledger.grow(request.kv, chunk.start + chunk.n_tokens + step.repeat - 1)
        request.in_step = True
        state.tell(request, RequestPhase.RUNNING)
    state.interrupted = False
    model.stepped_since_load = True
    return StartedStep(state.n_started, state.now_s, step, model.facts, _work(state, step))


def _work(state: LiveState, step: Step) -> StepWork:
    prefill = pairs = rows = context = 0
    for chunk in step.chunks:
        end = chunk.start + chunk.n_tokens
        n_prefill = max(0, min(end, state.requests[chunk.request].request.n_prompt) - chunk.start)
        prefill += n_prefill
        pairs += n_prefill * chunk.start + n_prefill * (n_prefill + 1) // 2
        n_rows = chunk.n_tokens - n_prefill
        rows += n_rows
        context += n_rows * end - n_rows * (n_rows - 1) // 2
    beside_copy = Channel.COPY_IN in state.in_flight or Channel.COPY_OUT in state.in_flight
    return StepWork(prefill, pairs, rows, context, beside_copy)


def _activate(state: LiveState, model: ModelState, operation: Activate) -> StartedActivation:
    validate.activate(state, model)
    images = state.ledger.place(model.facts)
    for image in images:
        state.ledger.cache.hold(image.id)
    model.stage = Residency.LOADING
    for request in model.requests():
        if not request.is_paused:
            state.tell(request, RequestPhase.LOADING)
    return StartedActivation(
        state.n_started,
        state.now_s,
        operation,
        model.facts,
        images,
        sum(image.n_bytes for image in images),
        _swap_reason(model),
        state.compute_until_now_s(),
    )


def _swap_reason(model: ModelState) -> SwapReason:
    if model.n_live:
        return SwapReason.FIRST if model.last_used_s == -inf else SwapReason.AGAIN
    return SwapReason.OPERATOR if model.pinned or model.wanted else SwapReason.AHEAD


def _page_in(state: LiveState, operation: PageIn) -> StartedPageIn:
    paged = _page(state, Channel.COPY_IN, operation.requests)
    return StartedPageIn(state.n_started, state.now_s, operation, paged, _bytes_of(paged))


def _page_out(state: LiveState, operation: PageOut) -> StartedPageOut:
    paged = _page(state, Channel.COPY_OUT, operation.requests)
    return StartedPageOut(state.n_started, state.now_s, operation, paged, _bytes_of(paged))


def _page(state: LiveState, channel: Channel, ids: tuple[RequestId, ...]) -> tuple[PagedRequest, ...]:
    """Allocate blocks for all of these requests. If one finds no room, the others free theirs and the plan is
    illegal."""
    ledger = state.ledger
    requests = [state.request(request_id) for request_id in ids]
    validate.paging(channel, requests)
    into_device = channel is Channel.COPY_IN
    begin_one = ledger.begin_page_in if into_device else ledger.begin_page_out
    paged: list[PagedRequest] = []
    try:
        for request in requests:  # one after another: what has begun must be known if one fails
            paged.append(PagedRequest(request.id, request.kv.n_computed, begin_one(request.id)))  # noqa: PERF401
    except IllegalPlan:
        for request_id, _, transfers in paged:
            if into_device:
                ledger.end_page_in(request_id, transfers, ok=False)
            else:
                ledger.end_page_out(request_id, 0, ok=False)
        raise
    for request in requests:
        request.in_copy = True
    return tuple(paged)


def _bytes_of(paged: tuple[PagedRequest, ...]) -> int:
    return sum(transfer.shape.block_bytes for _, _, transfers in paged for transfer in transfers)


def _compact(state: LiveState, operation: Compact) -> StartedCompaction:
    planned = state.ledger.plan_compaction(operation.n_bytes, state.fixed_models(), fixed_kv=state.fixed_kv())
    planned = validate.compact(operation, planned)
    blocks = state.ledger.blocks
    blocks.evict_idle(blocks.idle_extents)
    touched = state.ledger.moved_models(planned)
    if any(blocks.span(move.handle) for move in planned):
        touched.update(state.resident_models)
    for model_id in touched:
        state.models[model_id].is_moving = True
    moves = state.ledger.apply(planned)
    state.ledger.arena.frozen = True
    n_bytes = sum(move.n_bytes for move in moves)
    return StartedCompaction(state.n_started, state.now_s, operation, moves, n_bytes)


def _fetch(state: LiveState, model: ModelState, operation: Fetch) -> StartedFetch:
    validate.fetch(state, model)
    for request in model.waiting.values():
        state.tell(request, RequestPhase.LOADING)
    images, dropped = state.ledger.cache.begin_fetch(model.facts.images)
    n_bytes = sum(image.n_bytes for image in images)
    return StartedFetch(state.n_started, state.now_s, operation, model.facts, images, dropped, n_bytes)
