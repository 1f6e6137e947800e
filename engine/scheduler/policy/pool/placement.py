"""The default pool policy: keep a model's requests together, where the load is least.

A request goes to its model's instance if the model has one, otherwise to the least loaded instance
(`instance_load.py`). From time to time one model moves to even the loads (`rebalancing.py`).

A model that needs more than one instance can give spreads: while its queue on its least crowded instance
would take too long, the next request goes to the least loaded of the others, if that one is nearly free. It
gathers again as its requests end.

The `oracle` knows how long answers will be: a model that will soon be done asks for less. Only a simulation
can know; it shows what that knowledge would be worth.
"""

from collections.abc import Mapping, Sequence
from math import inf

from tokenmux.core.event import Arrived, Event
from tokenmux.core.facts import ModelId
from tokenmux.core.plan import Channel
from tokenmux.core.request import Request, RequestId
from tokenmux.scheduler.policy.instance_policy import InstanceView, ModelView
from tokenmux.scheduler.policy.pool.crowding import crowd
from tokenmux.scheduler.policy.pool.demand import demand_of, first_demand, requests_of
from tokenmux.scheduler.policy.pool.instance_load import CLASH, InstanceLoad, lag_of
from tokenmux.scheduler.policy.pool.pool_policy import Move, Place, PoolView, Refuse
from tokenmux.scheduler.policy.pool.prefix_savings import saved_share
from tokenmux.scheduler.policy.pool.rebalancing import best_move

REBALANCE_TTFTS = 0.1
"""Time between two checks of the balance, in TTFTs: of the pool (a second at the paper's 10 s), or of a
request that has arrived since, if that is shorter."""

CROWDED = 0.5
"""A model spreads when what it takes of its instance (`crowding.py`) reaches this."""

FREE = 0.25
"""A model spreads only to an instance whose load is at most this. With 0.75 a tight pool (a market on 4 H100)
fell from 99.6% of tokens on time to 78%."""


class LeastLoaded:
    """Keep a model's requests together, so that they share steps and one copy of the weights.

    `lengths` gives the number of tokens that each request will draw, if known.
    """

    name = "least-loaded"

    def __init__(self, rebalances: bool = True, lengths: Mapping[RequestId, int] | None = None) -> None:
        self._rebalances = rebalances
        self._lengths = lengths
        self._homes: dict[ModelId, dict[int, int]] = {}
        """For each model, its instances and how many of its live requests each of them has."""
        self._moving: dict[RequestId, tuple[ModelId, int]] = {}
        """Requests that are moving, with their models and target instances."""
        self._loads: list[InstanceLoad] = []
        self._next_look_s = -inf

    @property
    def n_remembered(self) -> int:
        """Models that have a home somewhere, and requests that move: nothing once all requests are over."""
        return len(self._homes) + len(self._moving)

    def place(self, request: Request, pool: PoolView) -> Place | Refuse:
        ttft_s = request.service.beside(pool.instances[0].service).ttft_s
        self._next_look_s = min(self._next_look_s, pool.now_s + REBALANCE_TTFTS * ttft_s)
        homes = self._homes.setdefault(request.model, {})
        crowds = {
            i: crowd(pool, i, request) - saved_share(pool, i, request)
            for i in homes
            if pool.takes(i, request)
        }
        index = min(crowds, key=crowds.__getitem__, default=None)
        if index is None or crowds[index] > CROWDED:
            index = self._new_home(request, pool, homes, index)
        homes[index] = homes.get(index, 0) + 1
        return Place(index)

    def on_event(self, index: int, event: Event, pool: PoolView) -> Sequence[Move]:
        if isinstance(event, Arrived) and self._has_arrived(index, event.request):
            homes = self._homes.setdefault(event.request.model, {})
            homes[index] = homes.get(index, 0) + 1
        if not self._rebalances or pool.now_s < self._next_look_s or len(pool.open) < 2:
            return ()
        self._next_look_s = pool.now_s + REBALANCE_TTFTS * pool.instances[index].service.ttft_s
        self._measure(pool)
        best = best_move(pool, self._loads, self._homes, self._moving)
        return () if best is None else self._move(*best)

    def on_left(self, index: int, request: Request) -> None:
        homes = self._homes[request.model]
        if not self._has_arrived(index, request):
            homes[index] -= 1
        if not homes[index] and (request.model, index) not in self._moving.values():
            del homes[index]
            self._loads[index].remove(request.model)
        if not homes:
            del self._homes[request.model]

    def _has_arrived(self, index: int, request: Request) -> bool:
        """True if the request was moving to this instance. It no longer is."""
        if self._moving.get(request.id) != (request.model, index):
            return False
        del self._moving[request.id]
        return True

    def _new_home(
        self, request: Request, pool: PoolView, homes: Mapping[int, int], crowded: int | None
    ) -> int:
        """The least loaded instance that the model is not on yet, or the crowded one if that would not
        help. Without a crowd, instances that pin the model go first."""
        if len(self._loads) < len(pool.instances):
            self._measure(pool)
        instances, model = pool.instances, request.model
        others = [i for i in range(len(self._loads)) if i not in homes]
        pinned = [i for i in others if _pins(instances[i], model)] if crowded is None else []
        others = [i for i in pinned if pool.takes(i, request)] or others
        facts = pool.facts(model)
        first_ttft_s = request.service.beside(instances[0].service).ttft_s
        copy_share = instances[0].cost.copy_s(Channel.COPY_IN, facts.n_bytes) / first_ttft_s

        def load(index: int) -> float:
            there = self._loads[index]
            return there.busy + CLASH * there.n_clashes(facts.n_bytes)

        def burden(index: int) -> float:
            """The instance's load, and the time to bring the weights there, less what is saved there."""
            is_there = model in instances[index].resident_models
            return load(index) + (0.0 if is_there else copy_share) - saved_share(pool, index, request)

        index = min(others, key=burden, default=None)
        if index is not None and not pool.takes(index, request):  # nearly always the least burdened one does
            others = [i for i in others if pool.takes(i, request)]
            index = min(others, key=burden, default=None)
        if crowded is not None and (index is None or load(index) > FREE):
            return crowded
        assert index is not None
        service = request.service.beside(instances[index].service)
        self._loads[index].add(model, first_demand(instances[index], facts, service))
        return index

    def _measure(self, pool: PoolView) -> None:
        self._loads = [
            InstanceLoad(
                instance.device.arena_bytes,
                lag_of(instance),
                {
                    m.facts.id: demand_of(instance, m, self._lengths)
                    for m in instance.live_models.values()
                    if m.n_live
                },
            )
            for instance in pool.instances
        ]

    def _move(self, model: ModelView, source: int, target: int) -> Sequence[Move]:
        model_id = model.facts.id
        self._homes[model_id][target] = 0
        self._moving.update((r.request.id, (model_id, target)) for r in requests_of(model))
        self._loads[target].add(model_id, self._loads[source].demands[model_id])
        self._loads[source].remove(model_id)
        return [Move(r.request.id, source, target) for r in requests_of(model)]


def _pins(instance: InstanceView, model: ModelId) -> bool:
    return model in instance.models and instance.models[model].pinned
