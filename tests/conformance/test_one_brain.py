"""The scheduler exists once: the running engine and the simulator must decide the same, line for line.

One seeded trace goes through `runtime.Engine` with the null device on a virtual clock, and through
`sim.Simulator`. Both get the same policy, facts and cost model; only who carries plans out, and who says what
time it is, differs.
"""

from collections.abc import Callable

import numpy as np
import pytest

from tokenmux.core.cost import RooflineCost
from tokenmux.core.event import Cancelled, ModelAdded
from tokenmux.core.facts import DeviceFacts, HostFacts, KvShape, ModelFacts, ModelId
from tokenmux.core.plan import Activate, AtOnce, Drop, Evict, Fetch, Operation, PageIn, PageOut, Step
from tokenmux.core.request import Request, RequestId, ServiceLevel
from tokenmux.executor.virtual import EngineOnVirtualTime
from tokenmux.messages.commands import Cancel, Register
from tokenmux.messages.reports import Finished
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.policy.slack import SlackPolicy
from tokenmux.simulator.simulator import Arrival, Simulator
from tokenmux.testing import make_model

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


def instance(facts: DeviceFacts, note: Callable[[float, Operation | AtOnce], None]) -> Instance:
    return Instance(
        facts, HostCache(HOST.cache_bytes), SlackPolicy(), RooflineCost(facts, HOST), on_decision=note
    )


def simulate(
    facts: DeviceFacts,
    catalogue: list[ModelFacts],
    arrivals: list[Arrival],
    cancelled: tuple[tuple[float, RequestId], ...] = (),
) -> Decisions:
    decisions: Decisions = []
    body = instance(facts, lambda at_s, decided: decisions.append((at_s, decided)))
    simulator = Simulator([body], RooflineCost(facts, HOST))
    for model in catalogue:
        simulator.apply(0, ModelAdded(0.0, model))
    coming = list(arrivals)
    for at_s, request in cancelled:
        simulator.run([a for a in coming if a.request.arrival_s <= at_s], until_s=at_s)
        coming = [a for a in coming if a.request.arrival_s > at_s]
        simulator.now_s = at_s
        simulator.apply(0, Cancelled(at_s, request))
    simulator.run(coming)
    return decisions


def run_engine(
    facts: DeviceFacts,
    catalogue: list[ModelFacts],
    arrivals: list[Arrival],
    cancelled: tuple[tuple[float, RequestId], ...] = (),
) -> tuple[EngineOnVirtualTime, Decisions]:
    decisions: Decisions = []
    n_output = {arrival.request.id: arrival.n_output for arrival in arrivals}
    body = EngineOnVirtualTime(instance(facts, lambda *decided: decisions.append(decided)), n_output)
    for model in catalogue:
        body.send(Register(model, path=""))
    for arrival in arrivals:
        body.submit_at(arrival.request)
    for at_s, request in cancelled:
        body.clock.call_at(at_s, lambda request=request: body.send(Cancel(request)))
    body.clock.run()
    return body, decisions


@pytest.mark.parametrize(
    ("seed", "arena_gb", "host_kv_gb"), [(0, 80, 100), (1, 30, 100), (2, 18, 40), (3, 18, 1)]
)
def test_engine_and_simulator_decide_the_same(seed: int, arena_gb: int, host_kv_gb: int) -> None:
    facts = device(arena_gb * GB, host_kv_gb * GB)
    catalogue, arrivals = models(8), trace(seed, n_models=8, n_requests=60)
    simulated = simulate(facts, catalogue, arrivals)
    body, decisions = run_engine(facts, catalogue, arrivals)
    assert len(simulated) > 200
    for line, (in_simulator, in_engine) in enumerate(zip(simulated, decisions, strict=False)):
        assert in_simulator == in_engine, f"the decision logs part at line {line}"
    assert len(simulated) == len(decisions)
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
    cancelled = ((cancelled_s, RequestId("gone")),)
    simulated = simulate(facts, models(3), arrivals, cancelled)
    body, decisions = run_engine(facts, models(3), arrivals, cancelled)
    assert simulated == decisions
    assert body.instance.metrics.n_superseded == (kind is not None)
    if kind is not None:
        decided = [what for at_s, what in decisions if at_s == cancelled_s]
        assert kind(ModelId("m1")) in decided, "at once, instead of after the rest of the other"
    body.instance.check_integrity()


def test_the_compared_trace_exercises_every_kind_of_decision() -> None:
    facts = device(18 * GB, 40 * GB)
    kinds = {type(decided) for _, decided in simulate(facts, models(8), trace(2, 8, 60))}
    assert {Step, Activate, Evict, PageOut, PageIn, Drop} <= kinds
