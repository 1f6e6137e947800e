"""Which copies of weights and fetches in flight should make way: somebody waited for the model, nobody does now, and another is waited for."""

from tokenmux.engine.core.message import Residency
from tokenmux.engine.core.plan import Channel
from tokenmux.engine.instance.live import LiveState

_CHANNELS = ((Channel.COPY_IN, Residency.HOST), (Channel.FETCH, Residency.DISK))
"""And where the weights of a model are that waits for the channel."""


class Superseding:
    """Operations to end early, each told once. `look` whenever something has changed."""

    def __init__(self) -> None:
        self._awaited: set[int] = set()
        """Operations in flight that somebody waits for, or did."""
        self._found: list[int] = []

    def look(self, state: LiveState) -> None:
        for channel, lacking in _CHANNELS:
            started = state.in_flight.get(channel)
            if started is None or started.model is None or started.model.id not in state.models:
                continue
            model = state.models[started.model.id]
            if model.has_requests or model.wanted or model.pinned:
                self._awaited.add(started.id)
            elif started.id in self._awaited and any(
                other.residency is lacking for other in state.live_models.values()
            ):
                self._awaited.discard(started.id)
                self._found.append(started.id)

    def ended(self, operation: int) -> None:
        """The operation is no longer in flight."""
        self._awaited.discard(operation)

    def take(self) -> list[int]:
        """What has been found since the last call."""
        found, self._found = self._found, []
        return found
