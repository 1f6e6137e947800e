"""A request's life on an instance: it arrives, its client pauses and resumes it, and it ends once."""

from tokenmux.core.effects import RequestEnded, RequestEntered, RequestLeft
from tokenmux.core.errors import InternalError
from tokenmux.core.event import Arrived
from tokenmux.core.phases import RequestPhase, Residency
from tokenmux.core.record import RequestRecord
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.scheduler.instance.live_state import LiveState
from tokenmux.scheduler.instance.request_state import RequestState


def arrive(state: LiveState, arrived: Arrived) -> None:
    request = arrived.request
    model = state.models[request.model]
    table = state.ledger.open(request.id, model.facts.kv, request.prefix)
    share = state.shares.enter(request)
    live = RequestState(arrived, model, table, share, state.cost)
    if arrived.n_kept:
        _check_kept(state, arrived)
        state.ledger.adopt(request.id, arrived.n_kept)
    if request.prefix is not None and model.stage is Residency.RESIDENT:
        state.take_prefix(live)
    state.requests[request.id] = live
    model.file(live)
    state.live_models[request.model] = model
    state.queue.join(live)
    state.effects.append(RequestEntered(request))
    state.tell(live, RequestPhase.QUEUED)
    if arrived.is_paused:
        pause(state, request.id, arrived.at_s)


def _check_kept(state: LiveState, arrived: Arrived) -> None:
    """Raise InternalError unless the kept KV ends where a step of this instance may have ended: on the
    grid of cells, or behind the prompt."""
    request, n_kept = arrived.request, arrived.n_kept
    on_grid = n_kept >= request.n_prompt or not n_kept % state.device.cell_tokens
    if not (on_grid and n_kept < request.n_prompt + arrived.n_delivered):
        raise InternalError(f"{request.id} arrives with KV of {n_kept} tokens, where no step can have ended")


def pause(state: LiveState, request_id: RequestId, at_s: float) -> None:
    request = state.requests.get(request_id)
    if request is not None and not request.is_paused and not _is_over(request):
        request.paused_since_s = at_s
        state.shares.leave(request.share)
        state.refile(request)
        state.tell(request, RequestPhase.PAUSED)


def resume(state: LiveState, request_id: RequestId, at_s: float) -> None:
    request = state.requests.get(request_id)
    if request is not None and request.paused_since_s is not None and not _is_over(request):
        request.shift_s += at_s - request.paused_since_s
        if request.since_s is not None:
            request.since_s += at_s - request.paused_since_s
        request.paused_since_s = None
        request.share = state.shares.enter(request.request)
        request.set_deadline()
        state.refile(request)
        state.tell(request, RequestPhase.QUEUED)


def _is_over(request: RequestState) -> bool:
    """True if it waits for an operation before it can end; one that is withdrawn goes on elsewhere."""
    return request.to_end is not None and request.to_end[0] is not None


def end(state: LiveState, request: RequestState, reason: FinishReason | None, detail: str = "") -> None:
    """End the request, or (without a `reason`) let it go elsewhere. It leaves as soon as no operation in
    flight uses it: call this again when one ends."""
    state.version += 1
    if request.to_end is None:
        request.model.unfile(request)
        state.queue.leave(request)
        state.leaving.pop(request.id, None)
    if request.to_end is None or request.to_end[0] is None:
        request.to_end = (reason, detail)
    if request.in_step or request.in_copy:
        return
    reason, detail = request.to_end
    n_clean = request.kv.n_clean
    if reason is None:
        state.ledger.park(request.id)
    else:
        state.ledger.close(request.id)
    del state.requests[request.id]
    if not request.is_paused:
        state.shares.leave(request.share)
    if not request.model.has_requests and state.live_models.get(request.request.model) is request.model:
        del state.live_models[request.request.model]
    request.model.keep_warm(request.request, state.now_s)
    if reason is None:
        history = request.history(state.now_s)
        arrival = Arrived(state.now_s, request.request, request.n_drawn, n_clean, history, request.is_paused)
        state.effects.append(RequestLeft(arrival))
        return
    record = RequestRecord(
        request.request,
        reason,
        first_token_s=request.first_token_s,
        end_s=state.now_s,
        last_token_s=request.last_token_s,
        n_tokens=request.n_drawn - request.request.n_resumed,
        n_on_time=request.n_on_time,
        artifact_late_s=request.artifact.late_s,
    )
    state.effects.append(RequestEnded(record, detail))
