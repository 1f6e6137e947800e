"""The claim of an instance on the host cache: what its policy will load next."""

from functools import partial
from math import inf

from tokenmux.core.plan import Channel
from tokenmux.scheduler.instance.live_state import LiveState
from tokenmux.scheduler.instance.model_state import ModelState
from tokenmux.scheduler.memory.host_cache import CacheClaim

MARGIN_FETCHES = 4.0
"""Other fetches leave room for a model if they are due later by this many of its own fetch times. A large
model holds up many small ones: with 0 to 2, models from 0.5B to 72B that came and went through 250 GB lost up
to ten points of their tokens on time, with 4 none."""


def renew(state: LiveState, first: ModelState | None) -> None:
    """CacheClaim what `first` needs, in place of what was claimed before."""
    if first is None:
        state.ledger.cache.withdraw(state.ledger)
    else:
        margin_s = MARGIN_FETCHES * state.cost.copy_s(Channel.FETCH, first.facts.n_bytes)
        claim = CacheClaim(first.facts.images, partial(_due_s, first), margin_s)
        state.ledger.cache.claim(state.ledger, claim)


def _due_s(model: ModelState) -> float:
    """When the model is due: never, once it is on its way to the device."""
    return model.due_s if model.stage is None else inf
