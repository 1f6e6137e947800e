"""Random plans, legal and illegal, amid arrivals, cancellations, pauses, removals, failing copies and, in
some of the runs, resizes.

The planner knows no rules. What the instance refuses must leave no trace; what it allows must keep every cell
right; and in the end every accepted request has ended exactly once, and nothing is held by anybody.
"""

from collections import Counter
from functools import cache
from random import Random

import pytest

from tests.scheduler.instance.body import Body, device_facts
from tokenmux.core.effects import RequestLeft
from tokenmux.core.errors import DoesNotFit, IllegalPlan, InUse
from tokenmux.core.event import (
    Arrived,
    Cancelled,
    ModelAdded,
    ModelRemoved,
    ModelWanted,
    Paused,
    ResizeAsked,
    Resumed,
    Withdrawn,
)
from tokenmux.core.facts import KvShape, ModelId
from tokenmux.core.plan import (
    Activate,
    AtOnce,
    Channel,
    Chunk,
    Compact,
    Discard,
    Drop,
    Evict,
    Fetch,
    Operation,
    PageIn,
    PageOut,
    Plan,
    Step,
)
from tokenmux.core.prefix import Prefix, prefix_keys, prefix_seed
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.core.started import StartedLoad, StartedStep
from tokenmux.testing import make_model

N_ACTIONS = 1500
GRID = 8
IMAGES = {"A": 1200, "B": 2800, "C": 1800, "D": 280}
SHAPES = (KvShape(1, 1, 16, 2, 4), KvShape(3, 1, 12, 2, 4))
MODELS = tuple(
    make_model(name, images={image: IMAGES[image] for image in images}, kv=shape, max_context=40)
    for name, images, shape in (
        ("base", "A", SHAPES[0]),
        ("adapted", "AD", SHAPES[0]),
        ("large", "B", SHAPES[1]),
        ("other", "C", SHAPES[1]),
    )
)
RESIZING = range(24, 36)
NOBODY = RequestId("nobody")
NOTHING = ModelId("nothing")


class Chaos:
    """One run: a body, a seeded generator, and what happened so far."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.resizes = seed in RESIZING
        self.resizing = False
        arena_bytes = self.random.choice((6000, 8400, 12000, 16800))
        host_kv_bytes = self.random.choice((0, 2048, 4096, 8192))
        cache_bytes = self.random.choice((3200, 4800, 8000))
        self.cell_tokens = self.random.choice((4, 8))
        device = device_facts(arena_bytes, host_kv_bytes, 2048, GRID, self.random.choice((4, 8)))
        self.body = Body(device, cache_bytes)
        self.accepted: dict[RequestId, Request] = {}
        self.moved_on: set[RequestId] = set()
        self.may_end: dict[RequestId, set[FinishReason]] = {}
        self.seen: Counter[str] = Counter()

    def run(self) -> None:
        for model in MODELS:
            self.body.apply(ModelAdded(0.0, model))
        often, sometimes = (
            [self.plan] * 30 + [self.complete] * 15,
            [self.arrive, self.pause, self.resume, self.resume],
        )
        rarely = [self.cancel, self.withdraw, self.want, self.remove_model, self.add_model, self.add_model]
        if self.resizes:
            rarely.append(self.resize)
        for _ in range(N_ACTIONS):
            self.body.now_s += self.random.random() * 0.05
            self.random.choice(self.random.choices((often, sometimes, rarely), (24, 3, 1))[0])()
            self.take_back_withdrawn()
        self.wind_down()

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────────

    def arrive(self) -> None:
        models = list(self.body.instance.models)
        if not models or len(self.body.instance.requests) > 7:
            return
        model, n_prompt = self.random.choice(models), self.random.randint(1, 20)
        request = Request(
            RequestId(f"r{len(self.accepted)}"),
            model,
            n_prompt,
            self.random.randint(1, 12),
            self.body.now_s,
            prefix=self.prefix(model, n_prompt) if self.random.random() < 0.8 else None,
        )
        self.accepted[request.id] = request
        self.may_end[request.id] = set()
        n_delivered = self.random.choice((0, 0, 0, request.max_tokens - 1))
        self.body.apply(Arrived(self.body.now_s, request, n_delivered))

    def prefix(self, model: ModelId, n_prompt: int) -> Prefix:
        """That of a prompt which begins as others do."""
        own = self.random.randint(0, n_prompt)
        prompt = [self.random.randrange(2)] * (n_prompt - own) + [self.random.randrange(2, 5)] * own
        keys = prefix_keys(prefix_seed(model, ()), prompt, self.cell_tokens)
        reads, writes = (self.random.random() < 0.9 for _ in range(2))
        return Prefix(model, self.cell_tokens, keys, reads, writes)

    def cancel(self) -> None:
        """One that is being copied, if there is one: that is rare enough."""
        copied = [request.id for request in self.body.instance.requests.values() if request.in_copy]
        request = self.random.choice(copied) if copied else self.any_request()
        for channel, started in self.body.flights.items():
            if request in str(started.operation):
                self.seen[f"cancelled under {channel.name}"] += 1
        reason = self.random.choice((FinishReason.CANCELLED, FinishReason.EXPIRED))
        self.may_end.setdefault(request, set()).add(reason)
        self.body.apply(Cancelled(self.body.now_s, request, reason))

    def pause(self) -> None:
        self.body.apply(Paused(self.body.now_s, self.any_request()))

    def resume(self) -> None:
        self.body.apply(Resumed(self.body.now_s, self.any_request()))

    def withdraw(self) -> None:
        self.body.apply(Withdrawn(self.body.now_s, self.any_request()))

    def take_back_withdrawn(self) -> None:
        """A withdrawn request comes back, as one that another instance had begun."""
        for arrived in (left.arrival for left in self.body.take(RequestLeft)):
            assert arrived.n_delivered < arrived.request.max_tokens, "it was complete, and should have ended"
            assert arrived.n_delivered == self.body.n_drawn[arrived.request.id]
            self.seen["withdrawn"] += 1
            if arrived.request.model in self.body.instance.models:
                self.body.apply(arrived)
            else:
                self.moved_on.add(arrived.request.id)
                self.body.ledger.host_kv.forget(arrived.request.id)

    def want(self) -> None:
        models = list(self.body.instance.models)
        if models:
            wanted, pinned = (self.random.choice((None, True, False)) for _ in range(2))
            model = self.random.choice(models)
            self.body.apply(ModelWanted(self.body.now_s, model, wanted, pinned))

    def remove_model(self) -> None:
        models = list(self.body.instance.models)
        if models:
            model = self.random.choice(models)
            for channel, started in self.body.flights.items():
                if isinstance(started, StartedStep | StartedLoad) and started.model.id == model:
                    self.seen[f"removed under {channel.name}"] += 1
            self.fail_all_of(model)
            self.body.apply(ModelRemoved(self.body.now_s, model))

    def add_model(self) -> None:
        absent = [model for model in MODELS if model.id not in self.body.instance.models]
        if absent:
            self.body.apply(ModelAdded(self.body.now_s, self.random.choice(absent)))

    def resize(self) -> None:
        arena_bytes = self.random.choice((3600, 6000, 8400, 12000, 16800))
        try:
            self.body.instance.check_resizable(arena_bytes)
        except (DoesNotFit, InUse) as error:
            self.seen[f"resize refused: {type(error).__name__}"] += 1
        else:
            self.body.apply(ResizeAsked(self.body.now_s, arena_bytes))
            self.resizing = True

    def fail_all_of(self, model: ModelId) -> None:
        for request in self.body.instance.requests.values():
            if request.request.model == model:
                self.may_end[request.id].add(FinishReason.FAILED)

    def any_request(self) -> RequestId:
        return self.random.choice([*self.body.instance.requests, NOBODY])

    # ── completions ─────────────────────────────────────────────────────────────────────────────────────────

    def complete(self) -> None:
        if not self.body.flights:
            return
        channel, started = self.random.choice(list(self.body.flights.items()))
        if isinstance(started.operation, Step):
            n_iterations = self.random.randint(1, started.operation.repeat)
            drawing = [c.request for c in started.operation.chunks if self.draws(c)]
            finished = [request for request in drawing if self.random.random() < 0.1]
            for request in finished:
                self.may_end[request].add(FinishReason.STOP)
            self.body.complete(channel, n_iterations=n_iterations, finished=finished)
            return
        # An activation that fails ends all requests of its model: so seldom that enough goes on.
        chance = 0.02 if isinstance(started.operation, Activate) else 0.1
        error = "" if isinstance(started.operation, Compact) or self.random.random() > chance else "broken"
        if error and isinstance(started.operation, Fetch | Activate):
            self.fail_all_of(started.operation.model)
        self.seen[f"{type(started.operation).__name__} ended {error or 'well'}"] += 1
        self.body.complete(channel, error)

    def draws(self, chunk: Chunk) -> bool:
        return chunk.start + chunk.n_tokens == self.body.instance.requests[chunk.request].n_tokens

    # ── plans ───────────────────────────────────────────────────────────────────────────────────────────────

    def plan(self) -> None:
        if self.resizing:
            if self.random.random() < 0.05:
                self.resize()
            self.resizing = not self.body.drain()
            self.seen["resized"] += not self.resizing
            return
        free = [channel for channel in Channel if channel not in self.body.flights]
        if not free:
            return
        channel = self.random.choice(free)
        operation = self.operation(channel)
        at_once = (self.at_once(),) if self.random.random() < 0.15 else ()
        if at_once and self.random.random() < 0.7:
            operation = None
        decided = at_once[0] if at_once else operation
        before = self.body.snapshot()
        try:
            self.body.plan(channel, Plan(operation, at_once))
        except IllegalPlan:
            self.seen[f"{type(decided).__name__} refused"] += 1
            if not (at_once and operation):
                assert self.body.snapshot() == before, f"refusing {decided} changed something"
        else:
            self.seen[f"{type(decided).__name__} allowed"] += 1
        self.body.check()

    def operation(self, channel: Channel) -> Operation:
        if self.random.random() < 0.02:
            channel = self.random.choice(list(Channel))
        match channel:
            case Channel.COPY_IN:
                kind = self.random.choices(("activate", "page in", "compact"), (5, 5, 1))[0]
                if kind == "activate":
                    return Activate(self.any_model())
                return PageIn(self.some_requests("away")) if kind == "page in" else self.compact()
            case Channel.COPY_OUT:
                return PageOut(self.some_requests("waiting", "decoding", "paused"))
            case Channel.FETCH:
                return Fetch(self.any_model())
            case Channel.COMPUTE:
                return self.step()

    def compact(self) -> Compact:
        return Compact(self.random.choice([sum(i.n_bytes for i in m.images) for m in MODELS]))

    def at_once(self) -> AtOnce:
        kind = self.random.choices((Evict, Drop, Discard), (4, 7, 1))[0]
        return Evict(self.any_model()) if kind is Evict else kind(self.any_request())

    def any_model(self) -> ModelId:
        """Mostly one with requests."""
        live = list(self.body.instance.live_models)
        if live and self.random.random() < 0.6:
            return self.random.choice(live)
        return self.random.choice([*(model.id for model in MODELS), NOTHING])

    def some_requests(self, *files: str) -> tuple[RequestId, ...]:
        """Mostly of these files of the models; sometimes whoever comes."""
        models = self.body.instance.models.values()
        filed = [request for model in models for file in files for request in getattr(model, file)]
        if not filed or self.random.random() < 0.1:
            filed = [*self.body.instance.requests, NOBODY]
        return tuple(self.random.choice(filed) for _ in range(self.random.choice((0, 1, 1, 1, 1, 2, 2, 3))))

    def step(self) -> Step:
        usable = [m for m in self.body.instance.live_models if m in self.body.instance.resident_models]
        model = self.random.choice(usable) if usable and self.random.random() < 0.95 else self.any_model()
        candidates = self.candidates(model)
        n_chosen = min(len(candidates), self.random.choice((1, 1, 2, 3)))
        chunks = [self.chunk(request) for request in self.random.sample(candidates, n_chosen)]
        if chunks and self.random.random() < 0.05:
            chunks.append(chunks[0])
        decoding = chunks and all(chunk.n_tokens == 1 for chunk in chunks)
        repeat = self.random.choice((1, 1, 2, 4, 9)) if decoding or self.random.random() < 0.05 else 1
        return Step(model, tuple(chunks), repeat if self.random.random() > 0.02 else 0)

    def candidates(self, model: ModelId) -> list[RequestId]:
        requests = self.body.instance.requests
        if self.random.random() < 0.05:
            return [*requests, NOBODY]
        return [
            r for r, request in requests.items() if request.request.model == model and not request.is_paused
        ]

    def chunk(self, request_id: RequestId) -> Chunk:
        """What comes next for the request, up to the grid, its cell or its last token; sometimes a little
        off."""
        if request_id not in self.body.instance.requests:
            return Chunk(request_id, 0, 1)
        request = self.body.instance.requests[request_id]
        start = request.n_computed
        grid = self.random.choice((GRID, self.cell_tokens))
        end = min(request.n_tokens, start - start % grid + grid)
        if self.random.random() < 0.05:
            start += self.random.choice((-1, 1))
        if self.random.random() < 0.05:
            end += self.random.choice((-1, 1))
        return Chunk(request_id, start, end - start)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────

    def wind_down(self) -> None:
        """Everybody is cancelled, everything in flight ends, all models go: nothing may be left."""
        for request in list(self.body.instance.requests):
            self.may_end[request].add(FinishReason.CANCELLED)
            self.body.apply(Cancelled(self.body.now_s, request))
        for channel in list(self.body.flights):
            self.body.complete(channel)
        for model in list(self.body.instance.models):
            self.body.apply(ModelRemoved(self.body.now_s, model))
        assert self.body.take(RequestLeft) == []
        self.assert_each_ended_once()
        ledger = self.body.ledger
        assert self.body.instance.is_idle
        assert not self.body.instance.requests
        assert not self.body.instance.resident_models
        assert not self.body.instance.live_models
        assert not self.body.instance.asked_models
        assert ledger.kv == {}
        assert ledger.arena.used_bytes == 0, "an extent leaked"
        assert ledger.host_arena.used_bytes == 0, "host KV leaked"
        assert (ledger.cache.held, ledger.cache.fetching) == ({}, ())

    def assert_each_ended_once(self) -> None:
        assert self.body.ended.keys() | self.moved_on == self.accepted.keys()
        assert not self.body.ended.keys() & self.moved_on
        for request, record in self.body.ended.items():
            if record.reason is FinishReason.LENGTH:
                assert record.n_tokens == record.request.max_tokens
            else:
                assert record.reason in self.may_end[request], f"{request} ended for no reason"
            self.seen[f"ended: {record.reason.value}"] += 1


SEEDS = range(36)


@cache
def what_happened(seed: int) -> Counter[str]:
    chaos = Chaos(seed)
    chaos.run()
    return chaos.seen


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_is_planned_the_books_balance_and_every_cell_is_right(seed: int) -> None:
    what_happened(seed)


def test_chaos_gets_everywhere() -> None:
    """The test above means something only if the planner hits each kind of plan, allowed and refused, and
    each race."""
    seen = sum((what_happened(seed) for seed in SEEDS), Counter[str]())
    kinds = ("Step", "Activate", "PageIn", "PageOut", "Compact", "Fetch", "Evict", "Drop", "Discard")
    expected = [f"{kind} {answer}" for kind in kinds for answer in ("allowed", "refused")]
    expected += [
        f"{kind} ended {how}"
        for kind in ("Activate", "PageIn", "PageOut", "Fetch")
        for how in ("well", "broken")
    ]
    expected += [f"cancelled under {channel}" for channel in ("COMPUTE", "COPY_IN", "COPY_OUT")]
    expected += [f"removed under {channel}" for channel in ("COMPUTE", "COPY_IN", "FETCH")]
    expected += [f"ended: {reason.value}" for reason in FinishReason] + ["withdrawn"]
    expected += ["resized", "resize refused: DoesNotFit", "resize refused: InUse"]
    assert [what for what in expected if not seen[what]] == []
