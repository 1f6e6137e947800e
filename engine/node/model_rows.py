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
from tokenmux.scheduler.instance.model_state import ModelState
from tokenmux.scheduler.metrics.counter_table import Row
from tokenmux.scheduler.metrics.counters import MODEL_TABLE, Metrics, ModelCounters
from tokenmux.scheduler.metrics.summing import summed

_NEAR = {residency: place for place, residency in enumerate(Residency)}
_NOTHING = MODEL_TABLE.row(ModelCounters())

Instances = Mapping[InstanceId, Instance]
_Part = tuple[InstanceId, ModelState, int]
"""What one device knows of a model, with the requests of its step in flight that are that model's."""


class ModelRows:
    """Makes a `ModelStatus` of every model. `refused` are those that no device is given, and why."""

    def __init__(self, refused: Mapping[ModelId, str]) -> None:
        self._refused = refused
        self._sums: dict[ModelId, tuple[tuple[Row, ...], Row]] = {}
        """The single counters of each model's parts, and the row of their sum, when it was last made."""

    def rows(
        self, instances: Instances, all_metrics: Sequence[Metrics], now_s: float, since_s: float
    ) -> tuple[tuple[ModelStatus, ...], int]:
        """The rows, and how many models were asked for since then. `all_metrics` are those of removed devices
        too: totals never fall."""
        if not instances:
            return (), 0
        first = next(iter(instances.values()))
        parts: dict[ModelId, list[_Part]] = {}
        for index, instance in instances.items():
            running, n_running = _running(instance)
            for model in _concerning(instance):
                part = index, instance.models[model], n_running if model == running else 0
                parts.setdefault(model, []).append(part)
        n_used, rows = 0, []
        for model, state in first.models.items():
            counters = [metrics.models[model] for metrics in all_metrics if model in metrics.models]
            for one in counters:
                if one.last_asked_s >= since_s:
                    n_used += 1
                    break
            counts = self._sum(model, counters)
            refusal = self._refused.get(model, "")
            if model in parts:
                rows.append(_row(model, parts[model], state.residency, counts, refusal, now_s))
            else:
                rows.append(ModelStatus(model, state.residency, False, 0, 0, 0, 0, counts, refusal))
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


def _row(
    model: ModelId,
    parts: Sequence[_Part],
    residency: Residency,
    counts: Row,
    refusal: str,
    now_s: float,
) -> ModelStatus:
    """`parts` are the devices that the model concerns, `residency` where it is as seen from any other."""
    n_queued = n_running = n_away = n_overdue = 0
    pinned = unload_asked = False
    load_error, resident_on = refusal, []
    nearest = _NEAR[residency]
    for index, state, n_stepping in parts:
        n_running += n_stepping
        n_queued += len(state.waiting) + len(state.decoding) - n_stepping
        n_away += len(state.away)
        n_overdue += sum(request.n_overdue(now_s) for request in state.requests())
        pinned = pinned or state.pinned
        unload_asked = unload_asked or state.wanted is False
        load_error = load_error or state.load_error
        where = state.residency
        if where is Residency.RESIDENT:
            resident_on.append(index)
        if _NEAR[where] > nearest:
            residency, nearest = where, _NEAR[where]
    return ModelStatus(
        model,
        residency,
        pinned,
        n_queued,
        n_running,
        n_away,
        n_overdue,
        counts,
        load_error,
        unload_asked,
        tuple(resident_on),
    )


def _running(instance: Instance) -> tuple[ModelId | None, int]:
    """The model of the step in flight, and how many of the step's requests want its tokens: not those
    cancelled or paused since it began."""
    step = instance.in_flight(Channel.COMPUTE)
    if not isinstance(step, Step):
        return None, 0
    model = instance.models.get(step.model)
    if model is None or not model.has_requests:  # a model may be removed in mid-step
        return None, 0
    requests = (instance.requests[chunk.request] for chunk in step.chunks)
    return step.model, sum(request.to_end is None and not request.is_paused for request in requests)
