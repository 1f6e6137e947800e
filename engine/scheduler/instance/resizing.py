"""Giving an instance's arena another size: when that is refused, how it begins, and when it is done.

    ResizeAsked ──▶ only `tokenmux.scheduler.policy.drain` plans ──▶ nothing in flight, arena empty
    ──▶ Resized ──▶ the policy plans again

Requests stay and wait; their models come back as after any eviction.
"""

from collections.abc import Container
from dataclasses import replace

from tokenmux.core.effects import ResizeReady
from tokenmux.core.errors import DoesNotFit, InUse, InvalidRequest
from tokenmux.core.facts import ModelId
from tokenmux.core.plan import Channel
from tokenmux.core.sizes import show_size
from tokenmux.core.started import StartedStep
from tokenmux.scheduler.instance.live_state import LiveState
from tokenmux.scheduler.memory.capacity import least_arena_bytes

_MIB = 1 << 20
_REMEDIES = {True: "unpin or remove a model", False: "remove the model"}


def check(state: LiveState, arena_bytes: int, elsewhere: Container[ModelId] = ()) -> None:
    """Raise InUse while another resize is under way, DoesNotFit if a smaller arena could not serve what is
    served now.

    As in a registration, that is each model with one chunk of a prompt, or with its largest live request,
    beside what is pinned. Models that are served `elsewhere` count if they have requests here, or are pinned.
    """
    if state.resize_bytes is not None:
        raise InUse(
            f"the pool is being resized to {show_size(state.resize_bytes)} already: try again when "
            "that is done"
        )
    if arena_bytes < 1:
        raise InvalidRequest(f"an arena of {arena_bytes} bytes holds nothing: ask for a larger one")
    if arena_bytes >= state.device.arena_bytes:
        return
    pinned = [model.facts for model in state.models.values() if model.pinned]
    for model in state.models.values():
        if model.facts.id in elsewhere and not (model.pinned or model.has_requests):
            continue
        chunk = min(model.facts.max_context, state.device.prefill_chunk_tokens)
        n_tokens = max([chunk, *(r.request.n_prompt + r.request.max_tokens for r in model.requests())])
        least = least_arena_bytes(state.device, model.facts, n_tokens, pinned)
        if arena_bytes < least:
            beside = " beside the pinned models" if pinned else ""
            raise DoesNotFit(
                f"{show_size(arena_bytes)} is too little: {model.facts.id} with a request of "
                f"{n_tokens} tokens needs "
                f"{-(-least // _MIB)}MiB{beside}; ask for that or more, or first {_REMEDIES[bool(pinned)]}"
            )


def ask(state: LiveState, arena_bytes: int) -> None:
    """Begin to empty the arena. A burst in flight ends after its present iteration."""
    state.resize_bytes = arena_bytes
    state.resize_told = False
    step = state.in_flight.get(Channel.COMPUTE)
    if isinstance(step, StartedStep) and step.operation.repeat > 1:
        state.interrupt()


def tell_when_drained(state: LiveState) -> None:
    """Report that the arena can be replaced, once nothing uses it or will use it."""
    if state.resize_bytes is not None:
        state.ledger.blocks.evict_all_idle()
    if (
        state.resize_bytes is not None
        and not state.resize_told
        and not state.in_flight
        and not state.ledger.arena.used_bytes
    ):
        state.resize_told = True
        state.effects.append(ResizeReady(state.resize_bytes))


def done(state: LiveState, arena_bytes: int) -> None:
    """The arena has size `arena_bytes` now. Raises IntegrityError unless it was empty."""
    state.ledger.resize(arena_bytes)
    state.device = replace(state.device, arena_bytes=arena_bytes)
    state.resize_bytes = None
