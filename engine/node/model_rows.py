"""The part of a node's status that says of each model where it is, who waits for it, and what it was given.

Most models of a catalogue are used by few devices at a time: a device is asked only about those that concern
it, and sums over devices are kept until a part of them moves. With 1,000 models on 8 devices a status takes 2
ms; asking every device about every model took 80, in which no device was told anything.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.core.phases import Residency
from tokenmux.core.plan import Activate, Channel, Step
from tokenmux.messages.reports import ModelStatus
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.metrics.counter_table import Row
from tokenmux.scheduler.metrics.counters import MODEL_TABLE, Metrics, ModelCounters
from tokenmux.scheduler.metrics.summing import summed

_NEAR = {residency: place for place, residency in enumerate(Residency)}
_NOTHING = MODEL_TABLE.row(ModelCounters())

Instances = Mapping[InstanceId, Instance]


class ModelRows:
    """Makes a `ModelStatus` of every model. `refused` are those that no device is given, and why."""

    def __init__(self, refused: Mapping[ModelId, str]) -> None:
        self._refused = refused
        self._sums: dict[ModelId, tuple[tuple[Row, ...], Row]] = {}
        """The single counters of each model's parts, and the row of their sum, when it was last made."""

    def rows(
        self, instances: Instances, all_metrics: Sequence[Metrics], since_s: float
    ) -> tuple[tuple[ModelStatus, ...], int]:
        """The rows, and how many models were asked for since then. `all_metrics` are those of removed devices
        too: totals never fall."""
        if not instances:
            return (), 0
        first = next(iter(instances.values()))
        users: dict[ModelId, dict[InstanceId, Instance]] = {}
        for index, instance in instances.items():
            for model in _concerning(instance):
                users.setdefault(model, {})[index] = instance
        n_used, rows = 0, []
        for model, state in first.models.items():
            parts = [metrics.models[model] for metrics in all_metrics if model in metrics.models]
            n_used += any(part.last_asked_s >= since_s for part in parts)
            counts = self._sum(model, parts)
            refusal = self._refused.get(model, "")
            using = users.get(model)
            if using is None:
                rows.append(ModelStatus(model, state.residency, False, 0, 0, 0, counts, refusal))
            else:
                rows.append(_row(model, using, state.residency, counts, refusal))
        return tuple(rows), n_used

    def _sum(self, model: ModelId, parts: Sequence[ModelCounters]) -> Row:
        if not parts:
            return _NOTHING
        if len(parts) == 1:
            return MODEL_TABLE.row(parts[0])
        singles = tuple(map(MODEL_TABLE.single, parts))
        known = self._sums.get(model)
        if known is None or known[0] != singles:
            known = self._sums[model] = (singles, MODEL_TABLE.row(summed(parts)))
        return known[1]


def _concerning(instance: Instance) -> AbstractSet[ModelId]:
    """The models of which a device has more to tell than whether the host has their weights."""
    load = instance.in_flight(Channel.COPY_IN)
    loading = {load.model} if isinstance(load, Activate) and load.model in instance.models else set()
    return (
        instance.live_models.keys()
        | instance.resident_models.keys()
        | instance.asked_models.keys()
        | instance.unreadable_models.keys()
        | loading
    )


def _row(model: ModelId, using: Instances, residency: Residency, counts: Row, refusal: str) -> ModelStatus:
    """`using` are the instances that the model concerns, `residency` where it is as seen from any other."""
    states = {index: instance.models[model] for index, instance in using.items()}
    n_running = n_queued = n_away = 0
    for index, state in states.items():
        n_stepping = _n_stepping(using[index], model)
        n_running += n_stepping
        n_queued += len(state.waiting) + len(state.decoding) - n_stepping
        n_away += len(state.away)
    return ModelStatus(
        model=model,
        residency=max(residency, *(state.residency for state in states.values()), key=_NEAR.__getitem__),
        pinned=any(state.pinned for state in states.values()),
        n_queued=n_queued,
        n_running=n_running,
        n_paged_out=n_away,
        counts=counts,
        load_error=refusal or next((state.load_error for state in states.values() if state.load_error), ""),
        unload_asked=any(state.wanted is False for state in states.values()),
        resident_on=tuple(i for i, state in states.items() if state.residency is Residency.RESIDENT),
    )


def _n_stepping(instance: Instance, model: ModelId) -> int:
    """Requests of the step in flight that want its tokens: not those cancelled or paused since it began."""
    step = instance.in_flight(Channel.COMPUTE)
    if not isinstance(step, Step) or step.model != model or not instance.models[model].has_requests:
        return 0
    requests = (instance.requests[chunk.request] for chunk in step.chunks)
    return sum(request.to_end is None and not request.is_paused for request in requests)
