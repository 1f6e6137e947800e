"""Actions of a plan that take effect at once: weights and KV are forgotten to make room."""

from tokenmux.core.phases import RequestPhase
from tokenmux.core.plan import AtOnce, Discard, Drop, Evict
from tokenmux.scheduler.instance import validate
from tokenmux.scheduler.instance.live_state import LiveState
from tokenmux.scheduler.instance.model_state import ModelState


def do(state: LiveState, action: AtOnce) -> None:
    """Carry out an action. Raises IllegalPlan if it is not allowed now."""
    match action:
        case Evict(model_id):
            model = state.model(model_id)
            validate.evict(state, model)
            evict(state, model)
        case Drop(request_id):
            request = state.request(request_id)
            validate.forget(request, len(request.kv.device) - request.kv.n_missing)
            state.ledger.drop(request_id)
            state.refile(request)
            if request.kv.n_missing:
                state.tell(request, RequestPhase.PAGED_OUT)
        case Discard(request_id):
            request = state.request(request_id)
            validate.forget(request, len(request.kv.device))
            state.ledger.discard(request_id)
            request.kv = state.ledger.kv[request_id]
            state.refile(request)
            state.tell(request, RequestPhase.QUEUED)
    state.effects.append(action)


def evict(state: LiveState, model: ModelState) -> None:
    """Take the model's weights off the device."""
    state.ledger.displace(model.facts)
    model.stage = None
    model.wanted = None
    state.file_asked(model)
    del state.resident_models[model.facts.id]
