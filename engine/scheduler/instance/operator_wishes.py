"""What operators do with a model of an instance: load, unload, pin and remove it, and when they may not."""

from collections.abc import Sequence
from math import inf

from tokenmux.core.errors import DoesNotFit, InUse
from tokenmux.core.facts import ModelFacts
from tokenmux.core.phases import Residency
from tokenmux.core.plan import Channel
from tokenmux.core.request import FinishReason
from tokenmux.core.started import StartedActivation, StartedStep
from tokenmux.scheduler.instance import immediate_actions, requests
from tokenmux.scheduler.instance.live_state import LiveState
from tokenmux.scheduler.instance.model_state import ModelState
from tokenmux.scheduler.memory.capacity import check_pins, check_request


def want(state: LiveState, model: ModelState, wanted: bool | None, pinned: bool | None) -> None:
    """Record that an operator wants the model loaded or unloaded, pinned or not. None leaves a wish
    unchanged."""
    model.pinned = model.pinned if pinned is None else pinned
    model.fetch_after_s = -inf
    state.file_load_error(model, "")
    if wanted is not None:
        here = model.stage is Residency.RESIDENT
        is_so = wanted is here and model.stage is not Residency.LOADING
        model.wanted = None if is_so else wanted
    state.file_asked(model)


def remove(state: LiveState, model: ModelState) -> None:
    """Remove a model: its requests fail and its weights are freed, those in use when their operation ends. No
    KV of theirs is for the next model of its name."""
    state.ledger.sharing.forget(model.facts.id)
    for request in [request for request in state.requests.values() if request.model is model]:
        request.kv.prefix = None
        requests.end(
            state, request, FinishReason.FAILED, f"model {model.facts.id} was removed from the catalogue"
        )
    user = state.in_flight.get(Channel.COPY_IN if model.stage is Residency.LOADING else Channel.COMPUTE)
    uses_it = isinstance(user, (StartedStep, StartedActivation)) and user.model is model.facts
    if user is not None and uses_it and user.id not in state.orphans:
        state.orphans.add(user.id)
        state.resident_models.pop(model.facts.id, None)
    elif model.stage is Residency.RESIDENT:
        immediate_actions.evict(state, model)
    state.forget_model(model.facts.id)


def check_removable(model: ModelState) -> None:
    """Raise InUse while an operation in flight uses the model."""
    if model.stage is Residency.LOADING or model.residency is Residency.FETCHING or model.is_moving:
        raise InUse(f"model {model.facts.id} is being loaded; try again in a moment")


def check_pinnable(state: LiveState, model: ModelState) -> None:
    """Raise DoesNotFit if pinning the model would take room that another model has now, InUse if the room
    is about to change."""
    if state.resize_bytes is not None:
        raise InUse(
            f"model {model.facts.id} cannot be pinned while the pool is being resized: try again "
            "when that is done"
        )
    already = [m.facts for m in state.models.values() if m.pinned and m is not model]
    everything = (m.facts for m in state.models.values())
    check_pins(state.device, [*already, model.facts], everything, already)
    check_room_of_requests(state, [*already, model.facts])


def check_room_of_requests(state: LiveState, pinned: Sequence[ModelFacts]) -> None:
    """Raise DoesNotFit if a live request, which was accepted, would never fit beside these pinned models."""
    for model in state.live_models.values():
        lengths = [r.request.n_prompt + r.request.max_tokens for r in model.requests()]
        n_tokens = max(lengths, default=0)  # the last ones may be on their way out
        try:
            check_request(state.device, model.facts, n_tokens, pinned)
        except DoesNotFit as error:
            raise DoesNotFit(
                f"a request that is being served would lose its room ({error}): try again when it has ended"
            ) from None


def check_unloadable(model: ModelState) -> None:
    """Raise InUse if the model is pinned."""
    if model.pinned:
        raise InUse(f"model {model.facts.id} is pinned; unpin it first")
