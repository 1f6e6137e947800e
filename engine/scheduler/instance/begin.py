"""Beginning an operation: it is checked, entered into the books, and becomes a `Started` that a body can
carry out."""

from math import inf

from tokenmux.core.cost import StepWork
from tokenmux.core.errors import IllegalPlan
from tokenmux.core.handles import Transfer
from tokenmux.core.phases import RequestPhase, Residency
from tokenmux.core.plan import Activate, Channel, Compact, Fetch, Operation, PageIn, PageOut, Step
from tokenmux.core.request import RequestId
from tokenmux.core.started import Started, SwapReason
from tokenmux.scheduler.instance import validate
from tokenmux.scheduler.instance.live_state import LiveState
from tokenmux.scheduler.instance.state import ModelState


def begin(state: LiveState, channel: Channel, operation: Operation) -> Started:
    """Raises IllegalPlan where the operation is not allowed now."""
    validate.channel(channel, operation)
    match operation:
        case Step():
            started = _step(state, operation)
        case Activate(model_id):
            started = _activate(state, state.model(model_id), operation)
        case PageIn(requests) | PageOut(requests):
            started = _page(state, channel, requests, operation)
        case Compact():
            started = _compact(state, operation)
        case Fetch(model_id):
            started = _fetch(state, state.model(model_id), operation)
    state.in_flight[channel] = started
    state.n_started += 1
    return started


def _step(state: LiveState, step: Step) -> Started:
    model = state.model(step.model)
    validate.step(state, model, step)
    for chunk in step.chunks:
        request = state.requests[chunk.request]
        state.ledger.grow(request.kv, chunk.start + chunk.n_tokens + step.repeat - 1)
        request.in_step = True
        state.tell(request, RequestPhase.RUNNING)
    state.interrupted = False
    model.stepped_since_load = True
    work = _work(state, step)
    return Started(state.n_started, Channel.COMPUTE, step, state.now_s, model=model.facts, work=work)


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


def _activate(state: LiveState, model: ModelState, operation: Activate) -> Started:
    validate.activate(state, model)
    images = state.ledger.place(model.facts)
    for image in images:
        state.ledger.cache.hold(image.id)
    model.stage = Residency.LOADING
    state.swap_compute_s = state.compute_busy_s()
    state.swap_reason = _swap_reason(model)
    for request in model.requests():
        if not request.is_paused:
            state.tell(request, RequestPhase.LOADING)
    n_bytes = sum(image.n_bytes for image in images)
    return Started(
        state.n_started,
        Channel.COPY_IN,
        operation,
        state.now_s,
        n_bytes,
        model=model.facts,
        images=images,
    )


def _swap_reason(model: ModelState) -> SwapReason:
    if model.n_live:
        return SwapReason.FIRST if model.last_used_s == -inf else SwapReason.AGAIN
    return SwapReason.OPERATOR if model.pinned or model.wanted else SwapReason.AHEAD


def _page(state: LiveState, channel: Channel, ids: tuple[RequestId, ...], operation: Operation) -> Started:
    requests = [state.request(request_id) for request_id in ids]
    validate.paging(channel, requests)
    transfers = _transfers(state, channel, ids)
    for request in requests:
        request.in_copy = True
        state.paging_computed[channel, request.id] = request.kv.n_computed
    n_bytes = sum(t.shape.block_bytes for _, blocks in transfers for t in blocks)
    return Started(state.n_started, channel, operation, state.now_s, n_bytes, transfers=tuple(transfers))


def _transfers(
    state: LiveState, channel: Channel, ids: tuple[RequestId, ...]
) -> list[tuple[RequestId, tuple[Transfer, ...]]]:
    """Blocks for all of these requests; if one finds no room, the others give theirs back and the plan is
    illegal."""
    ledger = state.ledger
    transfers: list[tuple[RequestId, tuple[Transfer, ...]]] = []
    try:
        for request_id in ids:
            begin_one = ledger.begin_page_in if channel is Channel.COPY_IN else ledger.begin_page_out
            transfers.append((request_id, begin_one(request_id)))
    except IllegalPlan:
        for request_id, blocks in transfers:
            if channel is Channel.COPY_IN:
                ledger.end_page_in(request_id, blocks, ok=False)
            else:
                ledger.end_page_out(request_id, 0, ok=False)
        raise
    return transfers


def _compact(state: LiveState, operation: Compact) -> Started:
    planned = state.ledger.plan_compaction(operation.n_bytes, state.fixed_models(), fixed_kv=state.fixed_kv())
    planned = validate.compact(operation, planned)
    touched = state.ledger.moved_models(planned)
    if any(state.ledger.blocks.span(move.handle) for move in planned):
        touched.update(state.resident_models)
    for model_id in touched:
        state.models[model_id].is_moving = True
    moves = state.ledger.apply(planned)
    state.ledger.arena.frozen = True
    n_bytes = sum(move.n_bytes for move in moves)
    return Started(state.n_started, Channel.COPY_IN, operation, state.now_s, n_bytes, moves=moves)


def _fetch(state: LiveState, model: ModelState, operation: Fetch) -> Started:
    validate.fetch(state, model)
    for request in model.waiting.values():
        state.tell(request, RequestPhase.LOADING)
    images, dropped = state.ledger.cache.begin_fetch(model.facts.images)
    n_bytes = sum(image.n_bytes for image in images)
    return Started(
        state.n_started,
        Channel.FETCH,
        operation,
        state.now_s,
        n_bytes,
        model=model.facts,
        images=images,
        dropped=dropped,
    )
