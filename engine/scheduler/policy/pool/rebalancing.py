"""Which model the most loaded instance gives away.

Models come and go at random, so loads drift apart. A model moves with all its requests, to the least loaded
instance that takes them: a model that is not on the device, has time to be loaded elsewhere, and whose move
narrows the gap.
"""

from collections.abc import Container, Mapping, Sequence
from math import inf

from tokenmux.core.facts import ModelId
from tokenmux.core.phases import Residency
from tokenmux.core.plan import Channel
from tokenmux.core.request import RequestId
from tokenmux.scheduler.policy.instance_policy import ModelView
from tokenmux.scheduler.policy.pool.demand import requests_of
from tokenmux.scheduler.policy.pool.instance_load import InstanceLoad
from tokenmux.scheduler.policy.pool.pool_policy import PoolView

MOVE_COPIES = 3.0
"""A model moves only if its next token is due at least this many of its own load times from now."""

MOVE_GAIN = 0.03
"""A move must lower the larger of the two loads by at least this much: a third of what a 7B model asks."""


def best_move(
    pool: PoolView,
    loads: Sequence[InstanceLoad],
    homes: Mapping[ModelId, Container[int]],
    moving: Container[RequestId],
) -> tuple[ModelView, int, int] | None:
    """A model that should move, its instance and its target; None if no move would help enough. `homes` are
    the instances of each live model, `moving` the requests that are moving already."""
    now = {index: loads[index].now for index in pool.open}
    most = max(now, key=now.__getitem__)
    for least in sorted(now, key=now.__getitem__):
        if least == most:
            break
        model, all_fit = _best_model(pool, loads, most, least, homes, moving)
        if model is not None:
            return model, most, least
        if all_fit:
            break
    return None


def _best_model(
    pool: PoolView,
    loads: Sequence[InstanceLoad],
    most: int,
    least: int,
    homes: Mapping[ModelId, Container[int]],
    moving: Container[RequestId],
) -> tuple[ModelView | None, bool]:
    """The model whose move lowers the larger of the two loads most, if one does so by enough; and whether
    nothing was passed over because it does not fit there."""
    source = pool.instances[most]
    freely = loads[most].lag > 0 and not loads[least].lag
    best, best_after, all_fit = None, loads[most].now - MOVE_GAIN, True
    for model_id, demand in loads[most].demands.items():
        model = source.live_models[model_id]
        if model.residency is not Residency.HOST or model.paused or least in homes[model_id]:
            continue
        if any(r.request.id in moving for r in requests_of(model)):
            continue
        if not freely and model.due_s - pool.now_s < MOVE_COPIES * source.cost.copy_s(
            Channel.COPY_IN, demand.weight_bytes
        ):
            continue
        after = _after(loads[most], loads[least], model_id)
        if after >= best_after:
            continue
        if all(pool.takes(least, r.request) for r in requests_of(model)):
            best, best_after = model, after
        else:
            all_fit = False
    return best, all_fit


def _after(source: InstanceLoad, target: InstanceLoad, model: ModelId) -> float:
    """The larger of the two loads once the model has moved. Infinite if it would clash with more models
    there."""
    demand = source.demands[model]
    if target.n_clashes(demand.weight_bytes) > source.n_clashes(demand.weight_bytes, model):
        return inf
    return max(source.larger(without=model), target.larger(extra=demand))
