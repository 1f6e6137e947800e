"""Which copies of weights and fetches in flight should give way.

Either requests waited for the model, none do now, and another model is waited for; or the policy says that a
request which has just arrived is more urgent. A model gives way to a more urgent one only once until it has
been loaded.
"""

from collections.abc import Callable, Iterator

from tokenmux.core.effects import Supersede
from tokenmux.core.event import CopyDone, StepDone
from tokenmux.core.facts import ModelId
from tokenmux.core.phases import Residency
from tokenmux.core.plan import Activate, Channel, Fetch
from tokenmux.core.started import Started, StartedActivation, StartedFetch, StartedLoad
from tokenmux.scheduler.instance.live_state import LiveState

_CHANNELS = ((Channel.COPY_IN, Residency.HOST), (Channel.FETCH, Residency.DISK))
"""Channels, and where the weights of a model are that waits for the channel."""


class Superseding:
    """Finds operations to stop early, each once. Call `look` whenever something has changed."""

    def __init__(self) -> None:
        self._awaited: set[int] = set()
        """Operations in flight for which requests wait, or waited."""
        self._told: set[int] = set()
        """Operations in flight that have been told to give way."""
        self._gave_way: set[ModelId] = set()
        """Models that gave way to a more urgent one and have not been loaded since."""

    def look(self, state: LiveState) -> None:
        for started, lacking in self._loading(state):
            model = state.models[started.model.id]
            if model.has_requests or model.wanted or model.pinned:
                self._awaited.add(started.id)
            elif started.id in self._awaited and any(
                other.residency is lacking for other in state.live_models.values()
            ):
                self._tell(state, started.id)

    def arrived(self, state: LiveState, makes_way: Callable[[Activate | Fetch, float], bool]) -> None:
        """A request arrived: should it go before what is in flight? `makes_way` takes an operation and the
        time when it began."""
        for started, _ in self._loading(state):
            model = started.model.id
            if model not in self._gave_way and makes_way(started.operation, started.at_s):
                self._gave_way.add(model)
                self._tell(state, started.id)

    def _loading(self, state: LiveState) -> Iterator[tuple[StartedLoad, Residency]]:
        """Loads of registered models in flight that do not give way yet, with the residency of the models
        that they may hold up."""
        for channel, lacking in _CHANNELS:
            started = state.in_flight.get(channel)
            if (
                isinstance(started, (StartedActivation, StartedFetch))
                and started.model.id in state.models
                and started.id not in self._told
            ):
                yield started, lacking

    def _tell(self, state: LiveState, operation: int) -> None:
        self._awaited.discard(operation)
        self._told.add(operation)
        state.effects.append(Supersede(operation))

    def ended(self, started: Started, event: StepDone | CopyDone) -> None:
        """The operation is no longer in flight."""
        self._awaited.discard(started.id)
        self._told.discard(started.id)
        if isinstance(started, StartedActivation) and isinstance(event, CopyDone) and event.ok:
            self._gave_way.discard(started.model.id)
