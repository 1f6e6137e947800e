"""What a node remembers for operators: its usage, reported once a second, and the newest operations and
requests, sent on request.

Both are bounded. `tokenmux.node.node_status` reports the present state.
"""

from collections.abc import Iterable
from typing import TypeVar

from tokenmux.core.clock import Clock
from tokenmux.core.effects import Effects
from tokenmux.core.facts import ModelId
from tokenmux.messages.commands import Ticket
from tokenmux.messages.reports import NodeUse, Traced
from tokenmux.scheduler.metrics.counter_table import Row
from tokenmux.scheduler.metrics.counters import SERVICE_TABLE, ServiceCounters
from tokenmux.scheduler.metrics.summing import summed
from tokenmux.scheduler.metrics.timeline import Timeline
from tokenmux.scheduler.pool.pool import Pool

Name = TypeVar("Name", bound=str)

USE_INTERVAL_S = 1.0

MAX_SPANS = 8192
"""A minute or more of work, in 4 MB."""


class Telemetry:
    """Watches the instances of a pool."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self.due_s: float | None = None
        """When to call `report` again for a report that was held back; None if none was."""
        self._pool = pool
        self._clock = clock
        self._last_s = float("-inf")
        self._told: dict[ServiceCounters, Row] = {}
        self._timeline = Timeline(MAX_SPANS)

    def note(self, index: int, effects: Effects) -> None:
        """Remember the operations and requests that ended on an instance."""
        self._timeline.add(index, effects)

    def trace(self, ticket: Ticket, last_s: float) -> Traced:
        return Traced(ticket, self._timeline.since(self._clock.now_s() - last_s))

    def report(self) -> NodeUse | None:
        """The models and tenants whose counters moved since the last report. None if there are none, or if
        the last report was a moment ago."""
        now_s = self._clock.now_s()
        if now_s < self._last_s + USE_INTERVAL_S:
            self.due_s = self._last_s + USE_INTERVAL_S
            return None
        self._last_s, self.due_s = now_s, None
        all_metrics = [instance.metrics for instance in self._pool.instances]
        models: dict[ModelId, list[ServiceCounters]] = {}
        tenants: dict[str, list[ServiceCounters]] = {}
        for metrics in all_metrics:
            for model, counters in metrics.models.items():
                models.setdefault(model, []).append(counters.service)
            for name, service in metrics.tenants.items():
                tenants.setdefault(name, []).append(service)
        use = NodeUse(now_s, tuple(self._rows(models.items())), tuple(self._rows(tenants.items())))
        return use if use.models or use.tenants else None

    def _rows(self, parts: Iterable[tuple[Name, list[ServiceCounters]]]) -> list[tuple[Name, Row]]:
        """The rows of those of which a part has moved since the last report."""
        moved = []
        for name, counters in parts:
            n_moved = sum(self._has_moved(part) for part in counters)
            if n_moved:
                moved.append((name, SERVICE_TABLE.row(summed(counters))))
        return moved

    def _has_moved(self, counters: ServiceCounters) -> bool:
        now = SERVICE_TABLE.single(counters)
        if self._told.get(counters) == now:
            return False
        self._told[counters] = now
        return True
