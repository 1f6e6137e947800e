"""What a worker remembers for operators: its usage, reported once a second, and the newest operations and
requests, sent on request.

Both are bounded. `tokenmux.executor.worker_status` reports the present state.
"""

from tokenmux.core.clock import Clock
from tokenmux.core.effects import Effects
from tokenmux.messages.commands import Ticket
from tokenmux.messages.reports import Traced, WorkerUse
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.metrics.counter_table import Row
from tokenmux.scheduler.metrics.counters import SERVICE_TABLE, ServiceCounters
from tokenmux.scheduler.metrics.timeline import Timeline

USE_INTERVAL_S = 1.0

MAX_SPANS = 8192
"""A minute or more of work, in 4 MB."""


class Telemetry:
    """Watches one instance."""

    def __init__(self, instance: Instance, clock: Clock) -> None:
        self.due_s: float | None = None
        """When to call `report` again for a report that was held back; None if none was."""
        self._instance = instance
        self._clock = clock
        self._last_s = float("-inf")
        self._told: dict[ServiceCounters, Row] = {}
        self._timeline = Timeline(MAX_SPANS)

    def note(self, effects: Effects) -> None:
        """Remember the operations and requests that ended."""
        self._timeline.add(0, effects)

    def trace(self, ticket: Ticket, last_s: float) -> Traced:
        return Traced(ticket, self._timeline.since(self._clock.now_s() - last_s))

    def report(self) -> WorkerUse | None:
        """The models and tenants whose counters moved since the last report. None if there are none, or if
        the last report was a moment ago."""
        now_s = self._clock.now_s()
        if now_s < self._last_s + USE_INTERVAL_S:
            self.due_s = self._last_s + USE_INTERVAL_S
            return None
        self._last_s, self.due_s = now_s, None
        metrics = self._instance.metrics
        models = tuple(
            (model, row)
            for model, counters in metrics.models.items()
            if (row := self._moved(counters.service)) is not None
        )
        tenants = tuple(
            (name, row)
            for name, counters in metrics.tenants.items()
            if (row := self._moved(counters)) is not None
        )
        return WorkerUse(now_s, models, tenants) if models or tenants else None

    def _moved(self, counters: ServiceCounters) -> Row | None:
        """The row of these counters; None if none has moved since the last report."""
        now = SERVICE_TABLE.single(counters)
        if self._told.get(counters) == now:
            return None
        self._told[counters] = now
        return SERVICE_TABLE.row(counters)
