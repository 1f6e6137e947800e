"""The promises under every policy that a server offers, on virtual time, in pools so small that nothing fits
comfortably.

Random worlds of a few models, of which the arena holds one with the KV of one request, and host memory little
KV or none. Whatever happens there: every request gets all its tokens, in bounded time, no KV is lost that
could be kept, and at the end nobody holds anything.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from random import Random

import pytest

from tokenmux.core.cost import StepWork
from tokenmux.core.effects import Effects, RequestEnded, decisions
from tokenmux.core.event import Cancelled, Event, ModelAdded
from tokenmux.core.facts import DeviceFacts, HostFacts, KvShape, ModelFacts
from tokenmux.core.plan import Channel, Plan, Step
from tokenmux.core.record import RequestRecord
from tokenmux.core.request import FinishReason, Request, RequestId, ServiceLevel
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.capacity import kv_bytes, weight_bytes
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.policy.instance_policy import InstanceView
from tokenmux.scheduler.policy.registry import SERVED, make_policy
from tokenmux.simulator.simulator import Simulator
from tokenmux.testing import make_model
from tokenmux.workload.trace import Arrival

SLAB = 4096
SHAPES = (KvShape(2, 1, 8, 2, 8), KvShape(3, 2, 8, 2, 4), KvShape(1, 1, 20, 2, 16))


class Audited:
    """A policy whose instance is audited after every event."""

    def __init__(self, name: str) -> None:
        self.policy = make_policy(name)
        self.name = name

    def on_event(self, event: Event, view: InstanceView) -> None:
        assert isinstance(view, Instance)
        view.check_integrity()
        self.policy.on_event(event, view)

    def plan(self, channel: Channel, view: InstanceView) -> Plan:
        return self.policy.plan(channel, view)

    def interrupts(self, step: Step, event: Event, view: InstanceView) -> bool:
        return self.policy.interrupts(step, event, view)


@dataclass
class World:
    """One instance, its models and requests, and what was recorded when they were served."""

    device: DeviceFacts
    host: HostFacts
    models: list[ModelFacts]
    arrivals: list[Arrival] = field(default_factory=list)
    policy: str = "slack"
    records: dict[RequestId, RequestRecord] = field(default_factory=dict)
    decisions: Counter[str] = field(default_factory=Counter)
    most_decisions: int = 1_500
    """Several times what a tiny world needs: a policy that reaches it goes round in circles."""

    def serve(self) -> "World":
        cost = RooflineCost(self.device, self.host)
        self.instance = Instance(
            self.device,
            HostCache(self.host.cache_bytes),
            Audited(self.policy),
            cost,
        )
        self.simulator = Simulator(
            [self.instance], RooflineCost(self.device, self.host), on_effects=self.note
        )
        for model in self.models:
            self.simulator.apply(0, ModelAdded(0.0, model))
        self.simulator.run(self.arrivals)
        return self

    def note(self, _index: int, at_s: float, effects: Effects) -> None:
        for effect in effects:
            if isinstance(effect, RequestEnded):
                assert effect.record.request.id not in self.records, "a request ended twice"
                self.records[effect.record.request.id] = effect.record
        self.decisions.update(type(decision).__name__ for decision in decisions(effects))
        assert self.decisions.total() < self.most_decisions, (
            f"more than {self.most_decisions} decisions by {at_s:.1f} s: {self.decisions}"
        )

    def alone_s(self, arrival: Arrival) -> float:
        """How long one request takes with nobody else there: fetch, activation, prefill in chunks, decode."""
        cost = RooflineCost(self.device, self.host)
        model = next(m for m in self.models if m.id == arrival.request.model)
        loading_s = sum(cost.copy_s(channel, model.n_bytes) for channel in (Channel.FETCH, Channel.COPY_IN))
        n_chunks = -(-arrival.request.n_prompt // self.device.prefill_chunk_tokens)
        longest = arrival.request.n_prompt + arrival.n_output
        row_s = cost.step_s(model, StepWork(self.device.prefill_chunk_tokens, longest**2, 0, longest))
        return loading_s + (n_chunks + arrival.n_output) * row_s


def device_of(arena_bytes: int, host_kv_bytes: int) -> DeviceFacts:
    return DeviceFacts(
        "tiny",
        arena_bytes,
        host_kv_bytes,
        copy_in_bytes_per_s=100_000,
        copy_out_bytes_per_s=100_000,
        memory_bytes_per_s=2_000_000,
        flops_per_s=1e9,
        step_overhead_s=0.002,
        copy_overhead_s=0.001,
        slab_bytes=SLAB,
        prefill_chunk_tokens=16,
    )


def tiny_world(seed: int, policy: str = "slack", host_kv_bytes: int | None = None) -> World:
    random = Random(seed)
    models = [
        make_model(
            f"m{i}",
            random.randint(2_000, 30_000),
            kv=random.choice(SHAPES),
            max_context=128,
            n_parameters=10_000,
        )
        for i in range(random.randint(2, 5))
    ]
    probe = device_of(1, 0)
    most = max(weight_bytes(model) + kv_bytes(probe, model.kv, model.max_context) for model in models)
    spare = random.choice((0, 0, 0, SLAB, 3 * SLAB, 30_000))
    scarce = random.choice((0, 0, SLAB, 3 * SLAB))
    host_kv = scarce if host_kv_bytes is None else host_kv_bytes
    sizes = [model.n_bytes for model in models]
    cache_bytes = random.choice((max(sizes), sum(sizes) // 2 + max(sizes), sum(sizes)))
    host = HostFacts(cache_bytes, fetch_bytes_per_s=200_000)
    world = World(device_of(most + spare, host_kv), host, models, policy=policy)
    at_s = 0.0
    mean_gap_s = random.choice((0.02, 0.3, 1.5))
    for i in range(random.randint(5, 40)):
        at_s += random.expovariate(1 / mean_gap_s)
        n_prompt = random.randint(1, 80)
        max_tokens = random.randint(1, 128 - n_prompt)
        service = ServiceLevel(random.choice((0.5, 2.0, 10.0)), random.choice((0.02, 0.1)))
        request = Request(RequestId(f"r{i}"), random.choice(models).id, n_prompt, max_tokens, at_s, service)
        world.arrivals.append(Arrival(request, random.randint(1, max_tokens)))
    return world


SEEDS = range(30)
every_policy = pytest.mark.parametrize("policy", SERVED)


@cache
def served(seed: int, policy: str) -> World:
    return tiny_world(seed, policy).serve()


@every_policy
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost(seed: int, policy: str) -> None:
    """Promise 2 and 4: every request ends once, with all its tokens, and holds nothing any more."""
    world = served(seed, policy)
    assert world.records.keys() == {arrival.request.id for arrival in world.arrivals}
    for arrival in world.arrivals:
        record = world.records[arrival.request.id]
        assert record.n_tokens == arrival.n_output
        complete = arrival.n_output == arrival.request.max_tokens
        assert record.reason is (FinishReason.LENGTH if complete else FinishReason.STOP)
    ledger = world.instance.ledger
    assert not world.instance.requests
    assert not world.instance.live_models
    assert ledger.kv == {}
    assert ledger.blocks.used_bytes == ledger.host_arena.used_bytes == 0, "KV leaked"
    assert ledger.arena.used_bytes == ledger.weight_bytes, "an extent leaked"


@every_policy
@pytest.mark.parametrize("seed", SEEDS)
def test_waiting_is_bounded(seed: int, policy: str) -> None:
    """Promise 4: all of them take no longer than one after another, each with a load of its own: nothing
    thrashes."""
    world = served(seed, policy)
    one_by_one_s = sum(world.alone_s(arrival) for arrival in world.arrivals)
    end_s = max(record.end_s for record in world.records.values())
    assert end_s <= world.arrivals[-1].request.arrival_s + 1.5 * one_by_one_s


@every_policy
@pytest.mark.parametrize("seed", SEEDS)
def test_kv_is_given_up_only_where_the_host_is_full(seed: int, policy: str) -> None:
    """Promise 3: with room for it on the host no KV is ever rebuilt, and what is rebuilt is counted."""
    world = served(seed, policy)
    assert world.instance.metrics.n_discards == world.decisions["Discard"]
    roomy = tiny_world(seed, policy, host_kv_bytes=200 * SLAB).serve()
    assert roomy.decisions["Discard"] == 0


@every_policy
def test_these_worlds_are_tight(policy: str) -> None:
    seen = sum((served(seed, policy).decisions for seed in SEEDS), Counter[str]())
    for kind in ("Step", "Activate", "Fetch", "Evict", "PageOut", "Drop", "PageIn", "Compact", "Discard"):
        assert seen[kind] >= 3, f"these worlds are not tight enough: {seen}"


@every_policy
@pytest.mark.parametrize("seed", range(20))
def test_cancelling_everything_at_any_moment_leaves_nothing(seed: int, policy: str) -> None:
    world = tiny_world(seed, policy)
    middle_s = world.arrivals[len(world.arrivals) // 2].request.arrival_s + 0.05
    cost = RooflineCost(world.device, world.host)
    world.instance = Instance(
        world.device,
        HostCache(world.host.cache_bytes),
        Audited(policy),
        cost,
    )
    simulator = Simulator([world.instance], cost, on_effects=world.note)
    for model in world.models:
        simulator.apply(0, ModelAdded(0.0, model))
    simulator.run(world.arrivals, until_s=middle_s)
    for request in list(world.instance.requests):
        simulator.apply(0, Cancelled(simulator.now_s, request))
    simulator.run([])
    assert not world.instance.requests
    assert world.instance.ledger.kv == {}
    assert world.instance.ledger.host_arena.used_bytes == 0
    assert world.instance.ledger.arena.used_bytes == world.instance.ledger.weight_bytes


@pytest.mark.parametrize("flood_ttft_s", [0.2, 10.0])
def test_a_flood_for_one_model_does_not_starve_another(flood_ttft_s: float) -> None:
    """Promise 4: the arena holds one model; a single request for the other comes amid many times what can be
    served.

    At worst those that were due before it go first, one by one; none that became due later does.
    """
    flooded, other = (
        make_model(name, 20_000, kv=SHAPES[0], max_context=128) for name in ("flooded", "other")
    )
    device = device_of(weight_bytes(flooded) + 4 * SLAB, 40 * SLAB)
    world = World(device, HostFacts(50_000, 200_000), [flooded, other], most_decisions=20_000)
    service = ServiceLevel(flood_ttft_s, 0.1)
    flood = [
        Arrival(Request(RequestId(f"f{i}"), flooded.id, 60, 60, 0.1 * i, service), n_output=60)
        for i in range(120)
    ]
    lonely = Arrival(Request(RequestId("lonely"), other.id, 10, 10, 1.0, ServiceLevel(2.0, 0.1)), n_output=10)
    world.arrivals = sorted([*flood, lonely], key=lambda arrival: arrival.request.arrival_s)
    world.serve()
    due_s = lonely.request.deadline_s(0)
    first_token_s = world.records[lonely.request.id].first_token_s
    assert first_token_s is not None
    before = [arrival for arrival in flood if arrival.request.deadline_s(0) < due_s]
    assert first_token_s <= due_s + sum(world.alone_s(arrival) for arrival in [*before, lonely])
