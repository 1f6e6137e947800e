"""Where requests go: to their model's instance while it has one, else to the least loaded; when a model
moves, and when it spreads.

An instance's load is what its live models ask of it, in shares of a second per second. Of compute: one decode
step per TPOT for every model, as long as its batch makes it. Of copy-in: all weights once per TTFT, and with
them the KV that finds no room beside the two largest models. The larger share counts.

Models come and go at random, so loads drift apart. Now and then the most loaded instance gives one model,
with all its requests, to the least loaded: one that is not on the device, has time to be loaded elsewhere,
and whose moving narrows the gap.

A model that is asked for more than one instance can give spreads: while its crowd on its least crowded
instance would take too long, the next request goes to the least loaded of the others, if that is nearly free.
It gathers again as its requests end.

The `oracle` is told how long answers will be: a model that will soon be done asks for less. Only a simulation
can tell it, and it is there to say what that would be worth.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from tokenmux.core.cost import StepWork
from tokenmux.core.event import Arrived, Event
from tokenmux.core.facts import ModelId
from tokenmux.core.phases import Residency
from tokenmux.core.plan import Channel
from tokenmux.core.request import Request, RequestId, ServiceLevel
from tokenmux.scheduler.policy.instance_policy import InstanceView, ModelView, RequestView
from tokenmux.scheduler.policy.pool.pool_policy import Move, Place, PoolView, Refuse
from tokenmux.scheduler.policy.slack import HEADROOM

REBALANCE_TTFTS = 0.1
"""Time between two looks at the balance, in the pool's own TTFT (a second at the paper's 10 s), or that of
a request that came since."""

MOVE_COPIES = 3.0
"""A model moves only if its next token is due this many of its own load times from now."""

FORESIGHT_TTFTS = 3.0
"""A model that will last longer than this asks for as much under the oracle as without it."""

MOVE_GAIN = 0.03
"""A move must lower the larger of the two loads by this much: a third of what a 7B model asks."""

CROWDED = 0.5
"""A model spreads when its prompts in line take this share of a TTFT and its decode steps of a TPOT,
together, or its KV of the room beside two sets of its weights (one set, where there is no room for two)."""

FREE = 0.25
"""And only to an instance with no more load than this. With 0.75 a tight pool (a market on 4 H100) fell
from 99.6% of tokens on time to 78%."""

CLASH = 1.0
"""Two models that never fit into the arena together take turns, and while one comes in nobody steps: as
bad as a load of one more. A model that is too large to share gets an instance of its own while it is live,
as long as the others can do without that one."""


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
    """How late its latest model is, in TTFTs of the pool: work that has piled up."""
    asks: dict[ModelId, _Ask] = field(default_factory=dict)
    _now: float | None = None
    """`larger` of what is asked now, once somebody wanted to know."""

    def add(self, model: ModelId, ask: _Ask) -> None:
        self.asks[model] = ask
        self._now = None

    def remove(self, model: ModelId) -> None:
        self._now = None
        self.asks.pop(model, None)

    @property
    def now(self) -> float:
        """The larger share of compute and copies, how late it is already, and `CLASH` where two models
        never fit together."""
        if self._now is None:
            self._now = self.larger()
        return self._now

    def larger(self, without: ModelId | None = None, extra: _Ask | None = None) -> float:
        """The same without one of the models, or with one more."""
        asks = [ask for model, ask in self.asks.items() if model != without]
        if extra:
            asks.append(extra)
        if not asks:
            return 0.0
        kv_bytes = sum(ask.kv_bytes for ask in asks)
        two_largest = sum(sorted(ask.weight_bytes for ask in asks)[-2:])
        room = self.arena_bytes - two_largest
        homeless = max(0.0, 1 - room / kv_bytes) if kv_bytes else 0.0
        copy = sum(ask.copy + homeless * ask.kv_copy for ask in asks)
        clash = CLASH if len(asks) > 1 and two_largest > (1 - HEADROOM) * self.arena_bytes else 0.0
        return self.lag + max(sum(ask.compute for ask in asks), copy) + clash

    def clashes(self, n_bytes: int, without: ModelId | None = None) -> bool:
        """Whether weights of that size and those of one of the models here could never be in the arena
        together."""
        room = (1 - HEADROOM) * self.arena_bytes - n_bytes
        return any(ask.weight_bytes > room for model, ask in self.asks.items() if model != without)


class LeastLoaded:
    """Keeps a model's requests together, so that they share steps and one copy of the weights.

    `lengths`: tokens that every request will draw, if that is known.
    """

    name = "least-loaded"

    def __init__(self, rebalances: bool = True, lengths: Mapping[RequestId, int] | None = None) -> None:
        self._rebalances = rebalances
        self._lengths = lengths
        self._homes: dict[ModelId, dict[int, int]] = {}
        """Where each model's live requests are, and how many."""
        self._moving: dict[RequestId, int] = {}
        """Requests on their way, and to where."""
        self._loads: list[_Load] = []
        self._next_look_s = -inf

    def place(self, request: Request, pool: PoolView) -> Place | Refuse:
        ttft_s = request.service.beside(pool.instances[0].service).ttft_s
        self._next_look_s = min(self._next_look_s, pool.now_s + REBALANCE_TTFTS * ttft_s)
        homes = self._homes.setdefault(request.model, {})
        crowds = {i: _crowd(pool, i, request) for i in homes}
        index = min(crowds, key=crowds.__getitem__, default=None)
        if index is None or crowds[index] > CROWDED:
            index = self._new_home(request, pool, homes, index)
        homes[index] = homes.get(index, 0) + 1
        return Place(index)

    def on_event(self, index: int, event: Event, pool: PoolView) -> Sequence[Move]:
        if isinstance(event, Arrived) and self._moving.get(event.request.id) == index:
            del self._moving[event.request.id]
            homes = self._homes.setdefault(event.request.model, {})
            homes[index] = homes.get(index, 0) + 1
        if not self._rebalances or pool.now_s < self._next_look_s or len(pool.instances) < 2:
            return ()
        self._next_look_s = pool.now_s + REBALANCE_TTFTS * pool.instances[index].service.ttft_s
        self._measure(pool)
        return self._rebalance(pool)

    def on_left(self, index: int, request: Request) -> None:
        homes = self._homes[request.model]
        homes[index] -= 1
        if not homes[index]:
            del homes[index]
            self._loads[index].remove(request.model)
        if not homes:
            del self._homes[request.model]

    def _new_home(
        self, request: Request, pool: PoolView, homes: Mapping[int, int], crowded: int | None
    ) -> int:
        """The least loaded instance that is none yet; the crowded home where that would not help."""
        if not self._loads:
            self._measure(pool)
        others = [i for i in range(len(self._loads)) if i not in homes]
        facts = pool.facts(request.model)

        def ask(index: int) -> _Ask:
            cost = pool.instances[index].cost
            service = request.service.beside(pool.instances[index].service)
            return _Ask(
                cost.step_s(facts, StepWork(decode_rows=1)) / service.tpot_s,
                cost.copy_s(Channel.COPY_IN, facts.n_bytes) / service.ttft_s,
                facts.n_bytes,
                0,
                0.0,
            )

        copy_share = ask(0).copy

        def load(index: int) -> float:
            there = self._loads[index]
            return there.now + (CLASH if there.clashes(facts.n_bytes) else 0.0)

        def burden(index: int) -> float:
            """With what it would take to bring the weights there."""
            is_there = request.model in pool.instances[index].resident_models
            return load(index) + (0.0 if is_there else copy_share)

        index = min(others, key=burden, default=None)
        if crowded is not None and (index is None or load(index) > FREE):
            return crowded
        assert index is not None
        self._loads[index].add(request.model, ask(index))
        return index

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
        loads = [load.now for load in self._loads]
        most = max(range(len(loads)), key=loads.__getitem__)
        least = min(range(len(loads)), key=loads.__getitem__)
        source = pool.instances[most]
        freely = self._loads[most].lag > 0 and not self._loads[least].lag
        best, best_after = None, loads[most] - MOVE_GAIN
        for model_id, ask in self._loads[most].asks.items():
            model = source.live_models[model_id]
            if model.residency is not Residency.HOST or model.paused or least in self._homes[model_id]:
                continue
            if any(r.request.id in self._moving for r in _requests(model)):
                continue
            if not freely and model.deadline_s - pool.now_s < MOVE_COPIES * source.cost.copy_s(
                Channel.COPY_IN, ask.weight_bytes
            ):
                continue
            after = self._after(most, least, model_id)
            if after < best_after:
                best, best_after = model, after
        if best is None:
            return ()
        self._homes[best.facts.id][least] = 0
        self._moving.update((r.request.id, least) for r in _requests(best))
        self._loads[least].add(best.facts.id, self._loads[most].asks[best.facts.id])
        self._loads[most].remove(best.facts.id)
        return [Move(r.request.id, most, least) for r in _requests(best)]

    def _after(self, most: int, least: int, model: ModelId) -> float:
        """The larger of the two loads once the model has moved.

        Of models that are in each other's way the first to leave lowers nothing: there, the load that it
        would meet counts.
        """
        source, target = self._loads[most], self._loads[least]
        ask = source.asks[model]
        there = target.larger(extra=ask)
        if source.clashes(ask.weight_bytes, model) and not target.clashes(ask.weight_bytes):
            return there
        return max(source.larger(without=model), there)


def _crowd(pool: PoolView, index: int, request: Request) -> float:
    """What the request's model would take of one instance: of a TTFT for prompts in line, of a TPOT for
    steps, of memory for KV."""
    instance = pool.instances[index]
    model = instance.live_models.get(request.model)
    if model is None:
        return 0.0
    n_prompt, n_decoding = request.n_prompt, len(model.decoding)
    service = request.service.beside(instance.service)
    prefill = StepWork(prefill_tokens=n_prompt, prefill_pairs=n_prompt**2 // 2)
    decode = StepWork(decode_rows=n_decoding, context_tokens=n_decoding * n_prompt)
    waiting_s = len(model.waiting) * instance.cost.step_s(model.facts, prefill)
    step_s = instance.cost.step_s(model.facts, decode) if n_decoding else 0.0
    kv_bytes = (model.n_live + 1) * n_prompt * model.facts.kv.token_bytes
    arena_bytes, weights = instance.device.arena_bytes, 2 * model.facts.n_bytes
    if weights > (1 - HEADROOM) * arena_bytes:
        weights = model.facts.n_bytes
    room = max(1, arena_bytes - weights)
    return max(waiting_s / service.ttft_s + step_s / service.tpot_s, kv_bytes / room)


def _lag(instance: InstanceView) -> float:
    latest = min(
        (m for m in instance.live_models.values() if m.n_live), key=lambda m: m.deadline_s, default=None
    )
    if latest is None or latest.deadline_s >= instance.now_s:
        return 0.0
    return (instance.now_s - latest.deadline_s) / instance.service.ttft_s


def _ask(instance: InstanceView, model: ModelView) -> _Ask:
    """By the strictest of its requests: its steps must come as often as that one needs them, and serve the
    others too."""
    requests = list(_requests(model))
    context = sum(r.n_tokens for r in requests)
    strictest = ServiceLevel(
        min(r.request.service.ttft_s for r in requests), min(r.request.service.tpot_s for r in requests)
    )
    service = strictest.beside(instance.service)
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
    """How much of the time that the oracle looks ahead the request will last, if its tokens come when they
    are due."""
    service = request.request.service
    last_due_s = request.deadline_s + (n_output - request.n_drawn) * service.tpot_s
    return min(1.0, max(0.0, (last_due_s - instance.now_s) / (FORESIGHT_TTFTS * service.ttft_s)))


def _requests(model: ModelView) -> Iterator[RequestView]:
    for file in (model.waiting, model.decoding, model.away):
        yield from file.values()
