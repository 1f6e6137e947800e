"""What a worker reports of itself: a snapshot after every change, at most five a second."""

from tokenmux.core.clock import Clock
from tokenmux.core.plan import Channel, Operation, Step
from tokenmux.messages.reports import ModelStatus, WorkerStatus
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.instance.model_state import ModelState
from tokenmux.scheduler.metrics.counters import INSTANCE_TABLE, MODEL_TABLE

STATUS_INTERVAL_S = 0.2
"""A person sees five changes a second as motion, and a snapshot of 20 models takes a quarter as long as
everything else in a step."""


class StatusReporter:
    """Limits the rate of snapshots of one instance."""

    def __init__(self, instance: Instance, clock: Clock) -> None:
        self._instance = instance
        self._clock = clock
        self._last_s = float("-inf")
        self.due_s: float | None = None

    def report(self, *, at_once: bool = False) -> WorkerStatus | None:
        """A snapshot. None if one was sent a moment ago and `at_once` is false: then `due_s` says when to
        call again."""
        now_s = self._clock.now_s()
        if now_s < self._last_s + STATUS_INTERVAL_S and not at_once:
            self.due_s = self._last_s + STATUS_INTERVAL_S
            return None
        self._last_s, self.due_s = now_s, None
        return self._snapshot(now_s)

    def _snapshot(self, now_s: float) -> WorkerStatus:
        instance = self._instance
        ledger, metrics = instance.ledger, instance.metrics
        step = instance.in_flight(Channel.COMPUTE)
        return WorkerStatus(
            at_s=now_s,
            device=instance.device.name,
            arena_bytes=ledger.arena.capacity,
            weight_bytes=ledger.weight_bytes,
            kv_bytes=ledger.blocks.used_bytes,
            host_cache_bytes=ledger.cache.capacity,
            host_cache_used_bytes=ledger.cache.used_bytes,
            host_kv_bytes=ledger.host_arena.capacity,
            host_kv_used_bytes=ledger.host_blocks.used_bytes,
            n_models_used=metrics.n_models_used(now_s),
            counts=INSTANCE_TABLE.row(metrics),
            running_model=step.model if isinstance(step, Step) else None,
            models=tuple(self._model(model, step) for model in instance.models.values()),
        )

    def _n_stepping(self, step: Step) -> int:
        """Requests of the step in flight that want its tokens: not those cancelled or paused since it
        began."""
        requests = (self._instance.requests[chunk.request] for chunk in step.chunks)
        return sum(request.to_end is None and not request.is_paused for request in requests)

    def _model(self, model: ModelState, step: Operation | None) -> ModelStatus:
        n_running = self._n_stepping(step) if isinstance(step, Step) and step.model == model.facts.id else 0
        return ModelStatus(
            model=model.facts.id,
            residency=model.residency,
            pinned=model.pinned,
            n_queued=len(model.waiting) + len(model.decoding) - n_running,
            n_running=n_running,
            n_paged_out=len(model.away),
            counts=MODEL_TABLE.row(self._instance.metrics.of(model.facts.id)),
            load_error=model.load_error,
            unload_asked=model.wanted is False,
        )
