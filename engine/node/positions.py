"""Tells waiting requests how many are ahead of them, and again as the queue moves.

The queue holds the requests that have not run yet, in the order in which the instance would serve them. A
request is told when its place changed by a tenth, or at all among the first ten: so in a queue of n each
request gets about 10 + 10 ln(n) messages in its life, not n.
"""

from tokenmux.core.clock import Clock
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.scheduler.instance.instance import Instance

POSITIONS_INTERVAL_S = 0.2

PER_INTERVAL = 500
"""This many requests are sorted in half a millisecond. Places in a longer queue are computed less often."""

EXACT = 10
COARSE = 0.1


class QueuePositions:
    """Watches the queue of one instance."""

    def __init__(self, instance: Instance, clock: Clock) -> None:
        self.due_s: float | None = None
        """When to take a look at the queue that was held back; None if none was."""
        self._instance = instance
        self._clock = clock
        self._next_s = float("-inf")
        self.looked_at = -1
        """The version of the queue at the last look: unchanged if no request came or left."""

    def report(self) -> list[PhaseChanged]:
        """What to tell now, after a request came or left. Empty if the last look was a moment ago."""
        now_s = self._clock.now_s()
        if now_s < self._next_s:
            self.due_s = self._next_s
            return []
        self.due_s, self.looked_at = None, self._instance.queue.version
        waiting = [r for r in self._instance.queue if r.to_end is None and not r.is_paused]
        self._next_s = now_s + POSITIONS_INTERVAL_S * (1 + len(waiting) // PER_INTERVAL)
        waiting.sort(key=lambda request: request.due_s)
        told = []
        for position, request in enumerate(waiting):
            change = abs(position - request.told_position)
            if request.told_phase is not RequestPhase.QUEUED or not change:
                continue
            if position < EXACT or change >= COARSE * request.told_position:
                request.told_position = position
                told.append(PhaseChanged(request.id, RequestPhase.QUEUED, position))
        return told
