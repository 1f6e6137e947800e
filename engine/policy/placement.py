"""Where requests go: to their model's instance while it has one, else to the least loaded; and when a model moves.

An instance's load is what its live models ask of it: a live model needs one decode step per TPOT however few its requests, and its
weights have to come in about once per TTFT. Both are shares of a second per second, and the larger one counts.

Models come and go at random, so loads drift apart. Now and then the most loaded instance gives one model, with all its requests,
to the least loaded: one that is not on the device, has time to be loaded elsewhere, and whose moving narrows the gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from tokenmux.engine.core.cost import StepWork
from tokenmux.engine.core.event import Event
from tokenmux.engine.core.facts import ModelId
from tokenmux.engine.core.message import Residency
from tokenmux.engine.core.plan import Channel
from tokenmux.engine.core.request import Request, ServiceLevel
from tokenmux.engine.policy.pool import Move, Place, PoolView, Refuse

REBALANCE_TTFTS = 0.1
"""Time between two looks at the balance: a second at the paper's 10 s."""

MOVE_COPIES = 3.0
"""A model moves only if its next token is due this many of its own load times from now."""


@dataclass(slots=True)
class _Load:
    """Shares of a second per second."""

    compute: float = 0.0
    copy: float = 0.0

    def add(self, other: "_Load", sign: int = 1) -> None:
        self.compute += sign * other.compute
        self.copy += sign * other.copy

    @property
    def larger(self) -> float:
        return max(self.compute, self.copy)


@dataclass(slots=True)
class _Home:
    """Where a model's live requests are, and what they ask of that instance."""

    instance: int
    load: _Load
    n_live: int = 0


class LeastLoaded:
    """Keeps a model's requests together, so that they share steps and one copy of the weights."""

    name = "least-loaded"

    def __init__(self, rebalances: bool = True) -> None:
        self._rebalances = rebalances
        self._homes: dict[ModelId, _Home] = {}
        self._loads: list[_Load] = []
        self._next_look_s = -inf

    def place(self, request: Request, pool: PoolView) -> Place | Refuse:
        while len(self._loads) < len(pool.instances):
            self._loads.append(_Load())
        home = self._homes.get(request.model)
        if home is None:
            index = min(range(len(self._loads)), key=lambda i: self._loads[i].larger)
            home = self._settle(request.model, request.service, index, pool)
        home.n_live += 1
        return Place(home.instance)

    def on_event(self, index: int, event: Event, pool: PoolView) -> Sequence[Move]:
        if not self._rebalances or pool.now_s < self._next_look_s or len(self._loads) < 2:
            return ()
        live = pool.instances[index].live_models
        ttft_s = min(
            (r.request.service.ttft_s for m in live.values() for r in m.waiting.values()), default=10.0
        )
        self._next_look_s = pool.now_s + REBALANCE_TTFTS * ttft_s
        return self._rebalance(pool)

    def on_left(self, index: int, request: Request) -> None:
        home = self._homes[request.model]
        if home.instance != index:
            return
        home.n_live -= 1
        if not home.n_live:
            self._loads[index].add(home.load, -1)
            del self._homes[request.model]

    def _settle(self, model: ModelId, service: ServiceLevel, index: int, pool: PoolView) -> _Home:
        facts = pool.facts(model)
        cost = pool.instances[index].cost
        load = _Load(
            cost.step_s(facts, StepWork(decode_rows=1)) / service.tpot_s,
            cost.copy_s(Channel.COPY_IN, facts.n_bytes) / service.ttft_s,
        )
        self._loads[index].add(load)
        home = self._homes[model] = _Home(index, load)
        return home

    def _rebalance(self, pool: PoolView) -> Sequence[Move]:
        order = sorted(range(len(self._loads)), key=lambda i: self._loads[i].larger)
        least, most = order[0], order[-1]
        gap = self._loads[most].larger - self._loads[least].larger
        source = pool.instances[most]
        best, best_after = None, gap
        for model in source.live_models.values():
            home = self._homes.get(model.facts.id)
            if home is None or home.instance != most or model.residency is not Residency.HOST or model.paused:
                continue
            after = abs(gap - 2 * home.load.larger)
            load_s = source.cost.copy_s(Channel.COPY_IN, model.facts.n_bytes)
            if after < best_after - 0.02 and model.deadline_s - pool.now_s > MOVE_COPIES * load_s:
                best, best_after = model, after
        if best is None:
            return ()
        home = self._homes[best.facts.id]
        self._loads[most].add(home.load, -1)
        self._loads[least].add(home.load)
        home.instance = least
        home.n_live = best.n_live
        return [Move(r, most, least) for file in (best.waiting, best.decoding, best.away) for r in file]
