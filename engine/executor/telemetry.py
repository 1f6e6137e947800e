"""What a worker remembers for operators: its users, reported once a second, and the newest operations and
requests, sent on request.

Both are bounded. `tokenmux.executor.worker_status` reports the present state.
"""

from tokenmux.core.clock import Clock
from tokenmux.core.effects import Effects
from tokenmux.messages.commands import Ticket
from tokenmux.messages.reports import Durations, ModelUse, Service, Traced, WorkerUse
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.metrics.counters import ServiceCounters
from tokenmux.scheduler.metrics.histogram import Histogram
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
        self._told: dict[ServiceCounters, tuple[float, ...]] = {}
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
            ModelUse(
                model, _service(counters.service), {reason.value: n for reason, n in counters.swaps.items()}
            )
            for model, counters in metrics.models.items()
            if self._moved(counters.service, counters.n_swaps)
        )
        tenants = tuple((name, _service(c)) for name, c in metrics.tenants.items() if self._moved(c))
        if not models and not tenants:
            return None
        return WorkerUse(
            now_s, metrics.work_s, metrics.model_work_s, metrics.n_models_used(now_s), models, tenants
        )

    def _moved(self, counters: ServiceCounters, n_swaps: int = 0) -> bool:
        now = (counters.n_requests, counters.n_prompt_tokens, counters.n_tokens, counters.gpu_s, n_swaps)
        if self._told.get(counters) == now:
            return False
        self._told[counters] = now
        return True


def _service(counters: ServiceCounters) -> Service:
    return Service(
        n_requests=counters.n_requests,
        n_requests_on_time=counters.n_requests_on_time,
        n_requests_failed=counters.n_requests_failed,
        n_prompt_tokens=counters.n_prompt_tokens,
        n_tokens=counters.n_tokens,
        n_tokens_on_time=counters.n_tokens_on_time,
        n_attained=counters.n_attained,
        attained=counters.attained,
        gpu_s=counters.gpu_s,
        ttft=_durations(counters.ttft),
        tpot=_durations(counters.tpot),
        gaps=_durations(counters.gaps),
    )


def _durations(histogram: Histogram) -> Durations:
    return Durations(tuple(histogram.counts), histogram.total_s)
