"""The scheduler exists once: the running engine and the simulator must decide the same, line for line.

One seeded trace goes through the `Engine`, message by message, and through the `Simulator`: with
cancellations, a resize, a worker that is lost. Both get the same policy, facts, cost model and virtual
device; what differs is who carries effects out, in what order, and what becomes of requests.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from tokenmux.core.effects import Effects
from tokenmux.core.effects import decisions as decisions_in
from tokenmux.core.event import Cancelled, ModelAdded, ResizeAsked
from tokenmux.core.facts import DeviceFacts, HostFacts, KvShape, ModelFacts, ModelId
from tokenmux.core.plan import Activate, AtOnce, Drop, Evict, Fetch, Operation, PageIn, PageOut, Step
from tokenmux.core.request import Request, RequestId, ServiceLevel
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.messages.commands import Cancel, Register, Resize
from tokenmux.messages.reports import Acknowledged, Finished, Tokens
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.policy.slack import SlackPolicy
from tokenmux.simulator.simulator import Arrival, Simulator
from tokenmux.testing import make_model
from tokenmux.testing.virtual_engine import EngineOnVirtualTime

GB = 10**9
HOST = HostFacts(cache_bytes=200 * GB, fetch_bytes_per_s=8e9)

Decisions = list[tuple[float, Operation | AtOnce]]


def device(arena_bytes: int, host_kv_bytes: int) -> DeviceFacts:
    return DeviceFacts(
        name="imagined",
        arena_bytes=arena_bytes,
        host_kv_bytes=host_kv_bytes,
        copy_in_bytes_per_s=16e9,
        copy_out_bytes_per_s=16e9,
        memory_bytes_per_s=2e12,
        flops_per_s=4e14,
        step_overhead_s=0.004,
        copy_overhead_s=1e-4,
        slab_bytes=256 << 20,
    )


def models(n: int) -> list[ModelFacts]:
    shape = KvShape(n_layers=28, n_kv_heads=28, head_dim=128, dtype_bytes=2, block_size=16)
    return [
        make_model(f"m{i}", (10 + i % 3) * GB, kv=shape, max_context=4096, n_parameters=7 * GB)
        for i in range(n)
    ]


def trace(seed: int, n_models: int, n_requests: int) -> list[Arrival]:
    rng = np.random.default_rng(seed)
    at_s = 0.0
    arrivals = []
    for number in range(n_requests):
        at_s += float(rng.exponential(0.8))
        request = Request(
            RequestId(f"r{number}"),
            ModelId(f"m{rng.integers(n_models)}"),
            n_prompt=int(rng.integers(1, 1500)),
            max_tokens=400,
            arrival_s=at_s,
            service=ServiceLevel(ttft_s=float(rng.choice([2.0, 10.0])), tpot_s=0.1),
        )
        arrivals.append(Arrival(request, int(rng.integers(1, 401))))
    return arrivals


@dataclass(frozen=True)
class Cancels:
    at_s: float
    request: RequestId


@dataclass(frozen=True)
class Resizes:
    at_s: float
    arena_bytes: int


@dataclass(frozen=True)
class LosesTheWorker:
    at_s: float


Happening = Cancels | Resizes | LosesTheWorker
"""What befalls both bodies beside the arrivals."""


def instance(facts: DeviceFacts) -> Instance:
    return Instance(facts, HostCache(HOST.cache_bytes), SlackPolicy(), RooflineCost(facts, HOST))


def simulate(
    facts: DeviceFacts,
    catalogue: list[ModelFacts],
    arrivals: list[Arrival],
    happenings: tuple[Happening, ...] = (),
) -> Decisions:
    log: Decisions = []
    simulator = Simulator(
        [instance(facts)],
        RooflineCost(facts, HOST),
        on_effects=lambda _, at_s, effects: log.extend((at_s, what) for what in decisions_in(effects)),
    )

    def befall(happening: Happening) -> None:
        match happening:
            case Cancels(at_s, request):
                simulator.apply(0, Cancelled(at_s, request))
            case Resizes(at_s, arena_bytes):
                simulator.instances[0].check_resizable(arena_bytes)
                simulator.apply(0, ResizeAsked(at_s, arena_bytes))
            case LosesTheWorker():
                simulator.replace(0, instance(simulator.instances[0].device))

    for model in catalogue:
        simulator.apply(0, ModelAdded(0.0, model))
    for happening in happenings:
        simulator.clock.call_at(happening.at_s, partial(befall, happening))
    simulator.run(arrivals)
    for simulated in simulator.instances:
        simulated.check_integrity()
    return log


def run_engine(
    facts: DeviceFacts,
    catalogue: list[ModelFacts],
    arrivals: list[Arrival],
    happenings: tuple[Happening, ...] = (),
) -> tuple[EngineOnVirtualTime, Decisions]:
    log: Decisions = []
    n_output = {arrival.request.id: arrival.n_output for arrival in arrivals}

    class Watched(EngineOnVirtualTime):
        def observe(self, at_s: float, effects: Effects) -> None:
            log.extend((at_s, what) for what in decisions_in(effects))

    body = Watched(instance(facts), n_output)

    def befall(happening: Happening) -> None:
        match happening:
            case Cancels(_, request):
                body.send(Cancel(request))
            case Resizes(_, arena_bytes):
                body.send(Resize(arena_bytes))
            case LosesTheWorker():
                body.replace(instance(body.instance.device))

    for model in catalogue:
        body.send(Register(model, path=""))
    for arrival in arrivals:
        body.submit_at(arrival.request)
    for happening in happenings:
        body.clock.call_at(happening.at_s, partial(befall, happening))
    body.clock.run()
    return body, log


def assert_same(simulated: Decisions, decisions: Decisions) -> None:
    for line, (in_simulator, in_engine) in enumerate(zip(simulated, decisions, strict=False)):
        assert in_simulator == in_engine, f"the decision logs part at line {line}"
    assert len(simulated) == len(decisions)


@pytest.mark.parametrize(
    ("seed", "arena_gb", "host_kv_gb"), [(0, 80, 100), (1, 30, 100), (2, 18, 40), (3, 18, 1)]
)
def test_engine_and_simulator_decide_the_same(seed: int, arena_gb: int, host_kv_gb: int) -> None:
    facts = device(arena_gb * GB, host_kv_gb * GB)
    catalogue, arrivals = models(8), trace(seed, n_models=8, n_requests=60)
    simulated = simulate(facts, catalogue, arrivals)
    body, decisions = run_engine(facts, catalogue, arrivals)
    assert len(simulated) > 200
    assert_same(simulated, decisions)
    ends = [message for message in body.said if isinstance(message, Finished)]
    assert sorted(end.request for end in ends) == sorted(arrival.request.id for arrival in arrivals)
    body.instance.check_integrity()
    assert not body.instance.ledger.kv


@pytest.mark.parametrize(
    ("came_s", "cancelled_s", "kind"), [(5.0, 5.4, Activate), (0.1, 2.0, Fetch), (5.0, 30.0, None)]
)
def test_both_supersede_a_load_alike(came_s: float, cancelled_s: float, kind: type[Operation] | None) -> None:
    """One model is on its way when its request is cancelled and another's waits (10 GB are fetched in 1.3
    s, copied in 0.6)."""
    facts = device(18 * GB, 40 * GB)
    arrivals = [
        Arrival(Request(RequestId(name), ModelId(of), 100, 400, at_s, ServiceLevel(10.0, 0.1)), 20)
        for name, of, at_s in (("gone", "m2", came_s), ("stays", "m1", came_s + 0.1))
    ]
    cancelled = (Cancels(cancelled_s, RequestId("gone")),)
    simulated = simulate(facts, models(3), arrivals, cancelled)
    body, decisions = run_engine(facts, models(3), arrivals, cancelled)
    assert simulated == decisions
    assert body.instance.metrics.n_superseded == (kind is not None)
    if kind is not None:
        decided = [what for at_s, what in decisions if at_s == cancelled_s]
        assert kind(ModelId("m1")) in decided, "at once, instead of after the rest of the other"
    body.instance.check_integrity()


@pytest.mark.parametrize("seed", range(4))
def test_both_resize_alike(seed: int) -> None:
    """While a step, a load or both are in flight: everything leaves, the arena is replaced, and requests
    go on."""
    facts = device(30 * GB, 100 * GB)
    catalogue, arrivals = models(8), trace(seed, n_models=8, n_requests=40)
    sizes = (Resizes(9.0 + 0.3 * seed, 24 * GB), Resizes(22.0 + 0.7 * seed, 60 * GB))
    simulated = simulate(facts, catalogue, arrivals, sizes)
    body, decisions = run_engine(facts, catalogue, arrivals, sizes)
    assert_same(simulated, decisions)
    assert body.instance.device.arena_bytes == 60 * GB
    answers = [said.error for said in body.said if isinstance(said, Acknowledged)]
    assert answers == [""] * (len(catalogue) + len(sizes))
    ends = [said.request for said in body.said if isinstance(said, Finished)]
    assert sorted(ends) == sorted(arrival.request.id for arrival in arrivals)


@pytest.mark.parametrize("seed", range(4))
def test_both_go_on_alike_after_a_worker_was_lost(seed: int) -> None:
    """In the middle of bursts and loads: the tokens that were delivered count, all KV is gone, and nothing
    is lost."""
    facts = device(30 * GB, 100 * GB)
    catalogue, arrivals = models(8), trace(seed, n_models=8, n_requests=40)
    losses = tuple(LosesTheWorker(at_s) for at_s in (7.03 + 0.21 * seed, 7.5 + 0.4 * seed, 25.77))
    simulated = simulate(facts, catalogue, arrivals, losses)
    body, decisions = run_engine(facts, catalogue, arrivals, losses)
    assert simulated != simulate(facts, catalogue, arrivals)
    assert_same(simulated, decisions)
    drawn = Counter(said.request for said in body.said if isinstance(said, Tokens))
    assert drawn == {arrival.request.id: arrival.n_output for arrival in arrivals}
    ends = [said.request for said in body.said if isinstance(said, Finished)]
    assert sorted(ends) == sorted(drawn)
    body.instance.check_integrity()


def test_the_compared_trace_exercises_every_kind_of_decision() -> None:
    facts = device(18 * GB, 40 * GB)
    kinds = {type(decided) for _, decided in simulate(facts, models(8), trace(2, 8, 60))}
    assert {Step, Activate, Evict, PageOut, PageIn, Drop} <= kinds
