"""Where requests go, when a model moves, and when it spreads: to the model's instance if it has one,
otherwise to the least loaded.

An instance's load is what its live models ask of it, in shares of a second per second. Of compute, each model
asks one decode step per TPOT, of the duration that its batch gives it. Of copy-in, it asks all weights once
per TTFT, and the KV that finds no room beside the two largest models. The larger share counts. Models that
never fit into the arena together add a load (`CLASH`).

Models come and go at random, so loads drift apart. From time to time the most loaded instance gives one
model, with all its requests, to the least loaded one: a model that is not on the device, has time to be
loaded elsewhere, and whose move narrows the gap.

A model that needs more than one instance can give spreads: while its queue on its least crowded instance
would take too long, the next request goes to the least loaded of the others, if that one is nearly free. It
gathers again as its requests end.

The `oracle` knows how long answers will be: a model that will soon be done asks for less. Only a simulation
can know; it shows what that knowledge would be worth.
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
from tokenmux.scheduler.policy.loading import HEADROOM
from tokenmux.scheduler.policy.pool.pool_policy import Move, Place, PoolView, Refuse
from tokenmux.scheduler.policy.pool.prefix_savings import saved_share

REBALANCE_TTFTS = 0.1
"""Time between two checks of the balance, in TTFTs: of the pool (a second at the paper's 10 s), or of a
request that has arrived since, if that is shorter."""

MOVE_COPIES = 3.0
"""A model moves only if its next token is due at least this many of its own load times from now."""

FORESIGHT_TTFTS = 3.0
"""The oracle treats a model that lasts longer than this like any other."""

MOVE_GAIN = 0.03
"""A move must lower the larger of the two loads by at least this much: a third of what a 7B model asks."""

CROWDED = 0.5
"""A model spreads when its waiting prompts (as a share of a TTFT) and its decode steps (as a share of a TPOT)
together reach this, or when its KV takes this share of the room beside two sets of its weights (beside one
set, if two do not fit)."""

FREE = 0.25
"""A model spreads only to an instance whose load is at most this. With 0.75 a tight pool (a market on 4 H100)
fell from 99.6% of tokens on time to 78%."""

CLASH = 1.0
"""Load added for each model that one never fits into the arena with; of an instance, the mean over its
models. They take turns, and nothing steps while one comes in. A model that is too large to share gets an
instance of its own while it is live, as long as the others can spare one; if they cannot, such models share
instances with few others, so that they do not all keep the many small ones from stepping. Counted once for an
instance, however many clash, sixteen overloads kept 2.7 points less (mean; -4 to +18 for one)."""


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
    """Cached `larger()` of what is asked now."""
    _heaviest: int | None = None
    """Cached size of the largest weights here."""

    def add(self, model: ModelId, ask: _Ask) -> None:
        self.asks[model] = ask
        self._now = self._heaviest = None

    def remove(self, model: ModelId) -> None:
        self._now = self._heaviest = None
        self.asks.pop(model, None)

    @property
    def now(self) -> float:
        """How busy it is, plus `CLASH` for each model that one never fits together with (the mean)."""
        if self._now is None:
            self._now = self.larger()
        return self._now

    def larger(self, without: ModelId | None = None, extra: _Ask | None = None) -> float:
        """What `now` would be without the model `without`, or with the ask `extra` added."""
        asks = [ask for model, ask in self.asks.items() if model != without]
        if extra:
            asks.append(extra)
        sizes = sorted(ask.weight_bytes for ask in asks)
        n_pairs = _n_clashing_pairs(sizes, self._sharable_bytes)
        return self._busy(asks, sizes) + (CLASH * 2 * n_pairs / len(sizes) if n_pairs else 0.0)

    @property
    def busy(self) -> float:
        """The larger share of compute and copies, plus how late it is already."""
        asks = list(self.asks.values())
        return self._busy(asks, sorted(ask.weight_bytes for ask in asks))

    def _busy(self, asks: Sequence[_Ask], sizes: Sequence[int]) -> float:
        if not asks:
            return 0.0
        kv_bytes = sum(ask.kv_bytes for ask in asks)
        room = self.arena_bytes - sum(sizes[-2:])
        homeless = max(0.0, 1 - room / kv_bytes) if kv_bytes else 0.0
        copy = sum(ask.copy + homeless * ask.kv_copy for ask in asks)
        return self.lag + max(sum(ask.compute for ask in asks), copy)

    def n_clashes(self, n_bytes: int, without: ModelId | None = None) -> int:
        """With how many models here weights of `n_bytes` could never share the arena."""
        room = self._sharable_bytes - n_bytes
        if self._heaviest is None:
            self._heaviest = max((ask.weight_bytes for ask in self.asks.values()), default=0)
        if self._heaviest <= room:
            return 0
        return sum(ask.weight_bytes > room for model, ask in self.asks.items() if model != without)

    @property
    def _sharable_bytes(self) -> float:
        return (1 - HEADROOM) * self.arena_bytes


def _n_clashing_pairs(sizes: Sequence[int], room: float) -> int:
    """How many pairs of these weights, the smallest first, do not fit into `room` together."""
    n_pairs, low = 0, 0
    for high in range(len(sizes) - 1, 0, -1):
        while low < high and sizes[low] + sizes[high] <= room:
            low += 1
        n_pairs += max(0, high - low)
        if low >= high:
            break
    return n_pairs


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
        self._loads: list[_Load] = []
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
            i: _crowd(pool, i, request) - saved_share(pool, i, request)
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
        return self._rebalance(pool)

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
        loads = {index: self._loads[index].now for index in pool.open}
        most = max(loads, key=loads.__getitem__)
        for least in sorted(loads, key=loads.__getitem__):
            if least == most:
                break
            model, all_fit = self._best_to_move(pool, most, least)
            if model is not None:
                return self._move(model, most, least)
            if all_fit:
                break
        return ()

    def _best_to_move(self, pool: PoolView, most: int, least: int) -> tuple[ModelView | None, bool]:
        """The model whose move lowers the larger of the two loads most, if one does so by enough; and whether
        nothing was passed over because it does not fit there."""
        source = pool.instances[most]
        freely = self._loads[most].lag > 0 and not self._loads[least].lag
        best, best_after, all_fit = None, self._loads[most].now - MOVE_GAIN, True
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
            if after >= best_after:
                continue
            if all(pool.takes(least, r.request) for r in _requests(model)):
                best, best_after = model, after
            else:
                all_fit = False
        return best, all_fit

    def _move(self, model: ModelView, source: int, target: int) -> Sequence[Move]:
        model_id = model.facts.id
        self._homes[model_id][target] = 0
        self._moving.update((r.request.id, (model_id, target)) for r in _requests(model))
        self._loads[target].add(model_id, self._loads[source].asks[model_id])
        self._loads[source].remove(model_id)
        return [Move(r.request.id, source, target) for r in _requests(model)]

    def _after(self, most: int, least: int, model: ModelId) -> float:
        """The larger of the two loads once the model has moved. Infinite if it would clash with more models
        there."""
        source, target = self._loads[most], self._loads[least]
        ask = source.asks[model]
        if target.n_clashes(ask.weight_bytes) > source.n_clashes(ask.weight_bytes, model):
            return inf
        return max(source.larger(without=model), target.larger(extra=ask))


def _crowd(pool: PoolView, index: int, request: Request) -> float:
    """What the request's model would take of one instance: share of a TTFT for waiting prompts plus share
    of a TPOT for steps, or share of memory for KV, whichever is larger."""
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


def _pins(instance: InstanceView, model: ModelId) -> bool:
    return model in instance.models and instance.models[model].pinned


def _lag(instance: InstanceView) -> float:
    latest = min(
        (m for m in instance.live_models.values() if m.n_live), key=lambda m: m.deadline_s, default=None
    )
    if latest is None or latest.deadline_s >= instance.now_s:
        return 0.0
    return (instance.now_s - latest.deadline_s) / instance.service.ttft_s


def _ask(instance: InstanceView, model: ModelView) -> _Ask:
    """What the model asks, by the strictest of its requests: steps must come as often as that one needs
    them, and they serve the others too."""
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
    """Share of the oracle's look-ahead that the request will last, if its tokens come when they are due."""
    service = request.request.service
    last_due_s = request.deadline_s + (n_output - request.n_drawn) * service.tpot_s
    return min(1.0, max(0.0, (last_due_s - instance.now_s) / (FORESIGHT_TTFTS * service.ttft_s)))


def _requests(model: ModelView) -> Iterator[RequestView]:
    for file in (model.waiting, model.decoding, model.away):
        yield from file.values()
