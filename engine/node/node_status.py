"""What a node reports of itself: a snapshot after every change, at most five a second."""

from collections.abc import Mapping, Sequence
from math import inf

from tokenmux.core.clock import Clock
from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.core.phases import DeviceState, Residency
from tokenmux.core.plan import Activate, Channel, Step
from tokenmux.messages.reports import DeviceStatus, ModelStatus, NodeStatus
from tokenmux.node.node_device import NodeDevice
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.memory.host_kv import HostKv
from tokenmux.scheduler.metrics.counters import DEDICATED_WINDOW_S, INSTANCE_TABLE, MODEL_TABLE, Metrics
from tokenmux.scheduler.metrics.summing import summed
from tokenmux.scheduler.pool.pool import Pool

STATUS_INTERVAL_S = 0.2
"""A person sees five changes a second as motion, and a snapshot of 20 models takes a quarter as long as
everything else in a step."""

STATUS_SHARE = 0.05
"""Making snapshots takes at most this share of the time: with thousands of models there are fewer."""

_NEAR = list(Residency)


class StatusReporter:
    """Limits the rate of snapshots of one node."""

    def __init__(
        self,
        pool: Pool,
        devices: Mapping[InstanceId, NodeDevice],
        refused: Mapping[ModelId, str],
        cache: HostCache,
        host_kv: HostKv,
        clock: Clock,
    ) -> None:
        self._pool = pool
        self._devices = devices
        self._refused = refused
        self._cache = cache
        self._host_kv = host_kv
        self._clock = clock
        self._next_s = -inf
        self._work_s = self._model_work_s = 0.0
        self._work_until_s = -inf
        self._n_live = 0
        self.due_s: float | None = None

    def report(self, *, at_once: bool = False) -> NodeStatus | None:
        """A snapshot. None if one was sent a moment ago and `at_once` is false: then `due_s` says when to
        call again."""
        now_s = self._clock.now_s()
        self._count_work(now_s)
        if now_s < self._next_s and not at_once:
            self.due_s = self._next_s
            return None
        self.due_s = None
        status = self._snapshot(now_s)
        took_s = self._clock.now_s() - now_s
        self._next_s = now_s + max(STATUS_INTERVAL_S, took_s / STATUS_SHARE)
        return status

    def _count_work(self, now_s: float) -> None:
        """Count the models that had unfinished requests since the last call, on whichever devices."""
        if self._n_live:
            self._work_s += now_s - self._work_until_s
            self._model_work_s += self._n_live * (now_s - self._work_until_s)
        self._work_until_s = now_s
        live = [device.instance.live_models for device in self._devices.values()]
        self._n_live = len(live[0]) if len(live) == 1 else len(set().union(*live))

    def _snapshot(self, now_s: float) -> NodeStatus:
        instances = {index: device.instance for index, device in self._devices.items()}
        all_metrics = [instance.metrics for instance in self._pool.instances]
        asked_s = _last_asked_s(all_metrics)
        models = next(iter(instances.values())).models if instances else {}
        return NodeStatus(
            at_s=now_s,
            host_cache_bytes=self._cache.capacity,
            host_cache_used_bytes=self._cache.used_bytes,
            host_kv_bytes=self._host_kv.arena.capacity,
            host_kv_used_bytes=self._host_kv.blocks.used_bytes,
            n_models_used=sum(at_s >= now_s - DEDICATED_WINDOW_S for at_s in asked_s.values()),
            work_s=self._work_s,
            model_work_s=self._model_work_s,
            devices=tuple(map(_device_status, self._devices.values())),
            models=tuple(
                _model_status(model, instances, all_metrics, self._refused.get(model, "")) for model in models
            ),
        )


def _last_asked_s(all_metrics: Sequence[Metrics]) -> dict[ModelId, float]:
    latest: dict[ModelId, float] = {}
    for metrics in all_metrics:
        for model, counters in metrics.models.items():
            latest[model] = max(latest.get(model, -inf), counters.last_asked_s)
    return latest


def _device_status(device: NodeDevice) -> DeviceStatus:
    instance = device.instance
    ledger, step, load = (
        instance.ledger,
        instance.in_flight(Channel.COMPUTE),
        instance.in_flight(Channel.COPY_IN),
    )
    return DeviceStatus(
        instance=device.index,
        device=instance.device.name,
        state=device.state,
        arena_bytes=ledger.arena.capacity,
        weight_bytes=ledger.weight_bytes,
        kv_bytes=ledger.blocks.used_bytes,
        counts=INSTANCE_TABLE.row(instance.metrics),
        running_model=step.model if isinstance(step, Step) else None,
        loading_model=load.model if isinstance(load, Activate) else None,
        resident=tuple(instance.resident_models),
        n_requests=len(instance.requests),
        n_deaths=device.n_deaths,
        fault="" if device.state is DeviceState.SERVING else device.fault,
        pinned=tuple(model for model in instance.asked_models if instance.models[model].pinned),
    )


def _n_stepping(instance: Instance, step: Step) -> int:
    """Requests of the step in flight that want its tokens: not those cancelled or paused since it began."""
    requests = (instance.requests[chunk.request] for chunk in step.chunks)
    return sum(request.to_end is None and not request.is_paused for request in requests)


def _model_status(
    model: ModelId, instances: Mapping[InstanceId, Instance], all_metrics: Sequence[Metrics], refusal: str
) -> ModelStatus:
    """`all_metrics` are those of removed devices too: totals never fall."""
    n_running = n_queued = n_away = 0
    resident_on = []
    states = []
    for index, instance in instances.items():
        state = instance.models[model]
        states.append(state)
        n_away += len(state.away)
        if state.residency is Residency.RESIDENT:
            resident_on.append(index)
        if not state.has_requests:
            continue
        step = instance.in_flight(Channel.COMPUTE)
        n_stepping = _n_stepping(instance, step) if isinstance(step, Step) and step.model == model else 0
        n_running += n_stepping
        n_queued += len(state.waiting) + len(state.decoding) - n_stepping
    return ModelStatus(
        model=model,
        residency=max((state.residency for state in states), key=_NEAR.index),
        pinned=any(state.pinned for state in states),
        n_queued=n_queued,
        n_running=n_running,
        n_paged_out=n_away,
        counts=MODEL_TABLE.row(summed([metrics.of(model) for metrics in all_metrics])),
        load_error=refusal or next((state.load_error for state in states if state.load_error), ""),
        unload_asked=any(state.wanted is False for state in states),
        resident_on=tuple(resident_on),
    )
