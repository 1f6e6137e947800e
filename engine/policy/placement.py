"""Where requests go: to their model's instance while it has one, else to the least loaded; and when a model moves.

An instance's load is what its live models ask of it, in shares of a second per second. Of compute: one decode step per TPOT for every
model, as long as its batch makes it. Of copy-in: all weights once per TTFT, and with them the KV that finds no room beside the two
largest models. The larger share counts.

Models come and go at random, so loads drift apart. Now and then the most loaded instance gives one model, with all its requests,
to the least loaded: one that is not on the device, has time to be loaded elsewhere, and whose moving narrows the gap.

The `oracle` is told how long answers will be: a model that will soon be done asks for less. Only a simulation can tell it, and it is there to say what
that would be worth.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from tokenmux.engine.core.cost import StepWork
from tokenmux.engine.core.event import Event
from tokenmux.engine.core.facts import ModelId
from tokenmux.engine.core.message import Residency
from tokenmux.engine.core.plan import Channel
from tokenmux.engine.core.request import Request, RequestId
from tokenmux.engine.policy.interface import InstanceView, ModelView, RequestView
from tokenmux.engine.policy.pool import Move, Place, PoolView, Refuse

REBALANCE_TTFTS = 0.1
"""Time between two looks at the balance: a second at the paper's 10 s."""

MOVE_COPIES = 3.0
"""A model moves only if its next token is due this many of its own load times from now."""


FORESIGHT_TTFTS = 3.0
"""A model that will last longer than this asks for as much under the oracle as without it."""

MOVE_GAIN = 0.03
"""A move must lower the larger of the two loads by this much: a third of what a 7B model asks."""


@dataclass(slots=True)
class _Home:
    """Where a model's live requests are."""

    instance: int
    n_live: int = 0


@dataclass(slots=True)
class _Ask:
    """What a model asks of its instance: compute and copy-in as shares of a second per second, and bytes."""

    compute: float
    copy: float
    weight_bytes: int
    kv_bytes: int
    kv_copy: float


@dataclass(slots=True)
class _Load:
    """What all live models ask of one instance."""

    arena_bytes: int
    lag: float = 0.0
    """How late its latest model is, in TTFTs: work that has piled up."""
    asks: dict[ModelId, _Ask] = field(default_factory=dict)

    def larger(self, without: ModelId | None = None, extra: _Ask | None = None) -> float:
        """The larger of the two shares, perhaps without one of the models or with one more."""
        asks = [ask for model, ask in self.asks.items() if model != without]
        if extra:
            asks.append(extra)
        if not asks:
            return 0.0
        kv_bytes = sum(ask.kv_bytes for ask in asks)
        room = self.arena_bytes - sum(sorted(ask.weight_bytes for ask in asks)[-2:])
        homeless = max(0.0, 1 - room / kv_bytes) if kv_bytes else 0.0
        copy = sum(ask.copy + homeless * ask.kv_copy for ask in asks)
        return self.lag + max(sum(ask.compute for ask in asks), copy)


class LeastLoaded:
    """Keeps a model's requests together, so that they share steps and one copy of the weights.

    `lengths`: tokens that every request will draw, if that is known.
    """

    name = "least-loaded"

    def __init__(self, rebalances: bool = True, lengths: Mapping[RequestId, int] | None = None) -> None:
        self._rebalances = rebalances
        self._lengths = lengths
        self._homes: dict[ModelId, _Home] = {}
        self._loads: list[_Load] = []
        self._next_look_s = -inf

    def place(self, request: Request, pool: PoolView) -> Place | Refuse:
        home = self._homes.get(request.model)
        if home is None:
            if not self._loads:
                self._measure(pool)
            index = min(range(len(self._loads)), key=lambda i: self._loads[i].larger())
            home = self._homes[request.model] = _Home(index)
            facts, cost = pool.facts(request.model), pool.instances[index].cost
            self._loads[index].asks[request.model] = _Ask(
                cost.step_s(facts, StepWork(decode_rows=1)) / request.service.tpot_s,
                cost.copy_s(Channel.COPY_IN, facts.n_bytes) / request.service.ttft_s,
                facts.n_bytes,
                0,
                0.0,
            )
        home.n_live += 1
        return Place(home.instance)

    def on_event(self, index: int, event: Event, pool: PoolView) -> Sequence[Move]:
        if not self._rebalances or pool.now_s < self._next_look_s or len(pool.instances) < 2:
            return ()
        live = pool.instances[index].live_models.values()
        ttft_s = min((r.request.service.ttft_s for m in live for r in _requests(m)), default=10.0)
        self._next_look_s = pool.now_s + REBALANCE_TTFTS * ttft_s
        self._measure(pool)
        return self._rebalance(pool)

    def on_left(self, index: int, request: Request) -> None:
        home = self._homes[request.model]
        if home.instance == index:
            home.n_live -= 1
            if not home.n_live:
                del self._homes[request.model]
                self._loads[index].asks.pop(request.model, None)

    def _measure(self, pool: PoolView) -> None:
        self._loads = [
            _Load(
                instance.device.arena_bytes,
                _lag(instance),
                {m.facts.id: self._ask(instance, m) for m in instance.live_models.values() if m.n_live},
            )
            for instance in pool.instances
        ]

    def _ask(self, instance: InstanceView, model: ModelView) -> _Ask:
        ask = _ask(instance, model)
        if self._lengths is not None:
            lasts = max(_lasts(instance, r, self._lengths[r.request.id]) for r in _requests(model))
            ask.compute, ask.copy, ask.kv_copy = ask.compute * lasts, ask.copy * lasts, ask.kv_copy * lasts
        return ask

    def _rebalance(self, pool: PoolView) -> Sequence[Move]:
        loads = [load.larger() for load in self._loads]
        most = max(range(len(loads)), key=loads.__getitem__)
        least = min(range(len(loads)), key=loads.__getitem__)
        source = pool.instances[most]
        freely = self._loads[most].lag > 0 and not self._loads[least].lag
        best, best_after = None, loads[most] - MOVE_GAIN
        for model_id, ask in self._loads[most].asks.items():
            model = source.live_models[model_id]
            if (
                model.residency is not Residency.HOST
                or model.paused
                or self._homes[model_id].instance != most
            ):
                continue
            if not freely and model.deadline_s - pool.now_s < MOVE_COPIES * source.cost.copy_s(
                Channel.COPY_IN, ask.weight_bytes
            ):
                continue
            after = max(self._loads[most].larger(without=model_id), self._loads[least].larger(extra=ask))
            if after < best_after:
                best, best_after = model, after
        if best is None:
            return ()
        home = self._homes[best.facts.id]
        home.instance, home.n_live = least, best.n_live
        self._loads[least].asks[best.facts.id] = self._loads[most].asks.pop(best.facts.id)
        return [Move(r.request.id, most, least) for r in _requests(best)]


def _lag(instance: InstanceView) -> float:
    latest = min(
        (m for m in instance.live_models.values() if m.n_live), key=lambda m: m.deadline_s, default=None
    )
    if latest is None or latest.deadline_s >= instance.now_s:
        return 0.0
    ttft_s = min(r.request.service.ttft_s for r in _requests(latest))
    return (instance.now_s - latest.deadline_s) / ttft_s


def _ask(instance: InstanceView, model: ModelView) -> _Ask:
    requests = list(_requests(model))
    context = sum(r.n_tokens for r in requests)
    service = requests[0].request.service
    work = StepWork(decode_rows=len(requests), context_tokens=context)
    kv_bytes = context * model.facts.kv.token_bytes
    return _Ask(
        instance.cost.step_s(model.facts, work) / service.tpot_s,
        instance.cost.copy_s(Channel.COPY_IN, model.facts.n_bytes) / service.ttft_s,
        model.facts.n_bytes,
        kv_bytes,
        instance.cost.copy_s(Channel.COPY_IN, kv_bytes) / service.ttft_s,
    )


def _lasts(instance: InstanceView, request: RequestView, n_output: int) -> float:
    """How much of the time that the oracle looks ahead the request will last, if its tokens come when they are due."""
    service = request.request.service
    last_due_s = request.deadline_s + (n_output - request.n_drawn) * service.tpot_s
    return min(1.0, max(0.0, (last_due_s - instance.now_s) / (FORESIGHT_TTFTS * service.ttft_s)))


def _requests(model: ModelView) -> Iterator[RequestView]:
    for file in (model.waiting, model.decoding, model.away):
        yield from file.values()
