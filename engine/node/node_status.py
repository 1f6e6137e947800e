"""What a node reports of itself: a snapshot after every change, at most five a second."""

from collections.abc import Mapping
from math import inf

from tokenmux.core.clock import Clock
from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.core.phases import DeviceState
from tokenmux.core.plan import Activate, Channel, Step
from tokenmux.messages.reports import DeviceStatus, NodeStatus
from tokenmux.node.model_rows import ModelRows
from tokenmux.node.node_device import NodeDevice
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.memory.host_kv import HostKv
from tokenmux.scheduler.metrics.counters import DEDICATED_WINDOW_S, INSTANCE_TABLE
from tokenmux.scheduler.pool.pool import Pool

STATUS_INTERVAL_S = 0.2
"""A person sees five changes a second as motion, and a snapshot of 20 models takes a tenth of a
millisecond."""

POSTPONED_S = 0.05
"""A snapshot that is due waits this long for a moment in which nothing was decided: between the tokens of a
burst the node has little to do, and devices do not wait for it."""

STATUS_SHARE = 0.05
"""Making snapshots takes at most this share of the time: with thousands of models there are fewer."""


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
        self._models = ModelRows(refused)
        self._cache = cache
        self._host_kv = host_kv
        self._clock = clock
        self._next_s = -inf
        self._work_s = self._model_work_s = 0.0
        self._work_until_s = -inf
        self._n_live = 0
        self.due_s: float | None = None

    def report(self, *, has_decided: bool = False, at_once: bool = False) -> NodeStatus | None:
        """A snapshot. None if one was sent a moment ago, or if the node `has_decided` something just now and
        has a moment's work behind it, and `at_once` is false: then `due_s` says when to call again."""
        now_s = self._clock.now_s()
        self._count_work(now_s)
        next_s = self._next_s + (POSTPONED_S if has_decided else 0.0)
        if now_s < next_s and not at_once:
            self.due_s = next_s
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
        models, n_used = self._models.rows(instances, all_metrics, now_s, now_s - DEDICATED_WINDOW_S)
        return NodeStatus(
            at_s=now_s,
            host_cache_bytes=self._cache.capacity,
            host_cache_used_bytes=self._cache.used_bytes,
            host_kv_bytes=self._host_kv.arena.capacity,
            host_kv_used_bytes=self._host_kv.blocks.used_bytes,
            n_models_used=n_used,
            work_s=self._work_s,
            model_work_s=self._model_work_s,
            devices=tuple(map(_device_status, self._devices.values())),
            models=models,
        )


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
