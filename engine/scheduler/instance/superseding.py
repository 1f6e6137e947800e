"""Which copies of weights and fetches in flight should make way.

Either somebody waited for the model, nobody does now, and another one is waited for; or the policy says that
a request which has just arrived is more urgent. A model that gave way to a more urgent one does so once until
it has been loaded.
"""

from collections.abc import Callable

from tokenmux.core.event import CopyDone, StepDone
from tokenmux.core.facts import ModelId
from tokenmux.core.phases import Residency
from tokenmux.core.plan import Activate, Channel, Fetch
from tokenmux.core.started import Started
from tokenmux.scheduler.instance.live_state import LiveState

_CHANNELS = ((Channel.COPY_IN, Residency.HOST), (Channel.FETCH, Residency.DISK))
"""And where the weights of a model are that waits for the channel."""


class Superseding:
    """Operations to end early, each told once. `look` whenever something has changed."""

    def __init__(self) -> None:
        self._awaited: set[int] = set()
        """Operations in flight that somebody waits for, or did."""
        self._told: set[int] = set()
        """Operations in flight that have been found to make way."""
        self._gave_way: set[ModelId] = set()
        """To a more urgent one, and have not been loaded since."""
        self._found: list[int] = []

    def look(self, state: LiveState) -> None:
        for channel, lacking in _CHANNELS:
            started = state.in_flight.get(channel)
            if started is None or started.model is None or started.model.id not in state.models:
                continue
            if started.id in self._told:
                continue
            model = state.models[started.model.id]
            if model.has_requests or model.wanted or model.pinned:
                self._awaited.add(started.id)
            elif started.id in self._awaited and any(
                other.residency is lacking for other in state.live_models.values()
            ):
                self._tell(started.id)

    def arrived(self, state: LiveState, makes_way: Callable[[Activate | Fetch, float], bool]) -> None:
        """A request arrived: is it to go before what is in flight? `makes_way` is given an operation and
        when it began."""
        for channel, _ in _CHANNELS:
            started = state.in_flight.get(channel)
            if started is None or started.model is None or started.model.id not in state.models:
                continue
            operation, model = started.operation, started.model.id
            assert isinstance(operation, (Activate, Fetch))
            if started.id in self._told or model in self._gave_way:
                continue
            if makes_way(operation, started.at_s):
                self._gave_way.add(model)
                self._tell(started.id)

    def _tell(self, operation: int) -> None:
        self._awaited.discard(operation)
        self._told.add(operation)
        self._found.append(operation)

    def ended(self, started: Started, event: StepDone | CopyDone) -> None:
        """The operation is no longer in flight."""
        self._awaited.discard(started.id)
        self._told.discard(started.id)
        if isinstance(started.operation, Activate) and isinstance(event, CopyDone) and not event.error:
            self._gave_way.discard(started.operation.model)

    def take(self) -> list[int]:
        """What has been found since the last call."""
        found, self._found = self._found, []
        return found
