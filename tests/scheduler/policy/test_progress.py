"""Whatever the policy, the memory, the models and the traffic: every request is served, nobody starves,
and no plan is illegal."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.random import Generator

from tokenmux.core.errors import DoesNotFit
from tokenmux.core.facts import DeviceFacts, HostFacts, KvShape, ModelFacts
from tokenmux.core.prefix import Prefix, PrefixKey
from tokenmux.core.request import Request, RequestId, ServiceLevel
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.capacity import check_request
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.memory.host_kv import HostKv
from tokenmux.scheduler.policy.registry import SERVED, make_policies
from tokenmux.simulator.simulator import Simulator
from tokenmux.testing import make_model
from tokenmux.workload.trace import Arrival

MB = 1_000_000
CELL = 16
HOST = HostFacts(cache_bytes=300 * MB, fetch_bytes_per_s=500 * MB)


def device(arena_mb: int, host_kv_mb: int) -> DeviceFacts:
    return DeviceFacts(
        name="tiny",
        arena_bytes=arena_mb * MB,
        host_kv_bytes=host_kv_mb * MB,
        copy_in_bytes_per_s=1000 * MB,
        copy_out_bytes_per_s=1000 * MB,
        memory_bytes_per_s=20_000 * MB,
        flops_per_s=1e12,
        step_overhead_s=0.002,
        slab_bytes=MB,
        prefill_chunk_tokens=64,
    )


def random_model(rng: Generator, number: int, below_mb: int) -> ModelFacts:
    """Weights of 2 MB or more, but less than `below_mb`."""
    weight_bytes = int(rng.integers(2, below_mb)) * MB
    kv = KvShape(int(rng.integers(2, 12)), n_kv_heads=4, head_dim=64, dtype_bytes=2, block_size=16)
    return make_model(f"m{number}", weight_bytes, kv=kv, max_context=512)


def traffic(rng: Generator, models: list[ModelFacts], n: int) -> list[Arrival]:
    arrivals, at_s = [], 0.0
    for number in range(n):
        at_s += float(rng.exponential(0.1))
        request = Request(
            RequestId(str(number)),
            models[int(rng.integers(len(models)))].id,
            n_prompt=int(rng.integers(1, 300)),
            max_tokens=200,
            arrival_s=at_s,
            service=ServiceLevel(float(rng.choice([0.5, 2.0])), 0.05),
        )
        arrivals.append(Arrival(request, int(rng.integers(1, 201))))
    return arrivals


@pytest.mark.parametrize("policy", SERVED)
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    arena_mb=st.integers(30, 120),
    host_kv_mb=st.sampled_from([0, 2, 10, 100]),
    n_models=st.integers(1, 6),
    n_instances=st.integers(1, 3),
    shares=st.booleans(),
)
# A model brought ahead of its turn took the room that the KV of the turn needed, left for it, and came again,
# for ever.
@example(seed=501, arena_mb=32, host_kv_mb=0, n_models=6, n_instances=1, shares=False)
# The most urgent prompt did not fit, a shorter one would have: no step, and no rescue either.
@example(seed=1745, arena_mb=44, host_kv_mb=0, n_models=5, n_instances=2, shares=False)
def test_everything_is_served(
    seed: int, arena_mb: int, host_kv_mb: int, n_models: int, policy: str, n_instances: int, shares: bool
) -> None:
    """Also where the instances share host memory for KV, so that one takes what another was about to use."""
    rng = np.random.default_rng(seed)
    models = [random_model(rng, i, max(3, arena_mb - 24)) for i in range(n_models)]
    arrivals = traffic(rng, models, 40)
    facts = device(arena_mb, host_kv_mb)
    policies, pool_policy = make_policies(policy, n_instances)
    host_kv = HostKv(facts.host_kv_bytes, facts.slab_bytes) if shares else None
    instances = [
        Instance(facts, HostCache(HOST.cache_bytes), own, RooflineCost(facts, HOST), host_kv=host_kv)
        for own in policies
    ]
    simulator = Simulator(instances, RooflineCost(facts, HOST), pool_policy, {m.id: m for m in models})
    simulator.run(arrivals)
    records = simulator.records
    for instance in instances:
        instance.check_integrity()
    assert sorted(r.request.id for r in records) == sorted(a.request.id for a in arrivals)
    assert {r.request.id: r.n_tokens for r in records} == {a.request.id: a.n_output for a in arrivals}
    assert simulator.now_s < 600


@pytest.mark.parametrize("policy", SERVED)
@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 100_000),
    arena_mb=st.integers(8, 24),
    n_models=st.integers(2, 6),
    largest_mb=st.integers(3, 8),
)
# A turn was over before what others had discarded was rebuilt, and then the next one discarded it again.
@example(seed=95138, arena_mb=8, n_models=5, largest_mb=6)
@example(seed=66640, arena_mb=11, n_models=6, largest_mb=6)
def test_everything_is_served_in_an_arena_for_one_without_host_memory_for_kv(
    seed: int, arena_mb: int, n_models: int, largest_mb: int, policy: str
) -> None:
    rng = np.random.default_rng(seed)
    models = {m.id: m for m in (random_model(rng, i, largest_mb) for i in range(n_models))}
    facts = device(arena_mb, 0)
    arrivals = [
        a for a in traffic(rng, list(models.values()), 30) if _fits(facts, models[a.request.model], a.request)
    ]
    policies, pool_policy = make_policies(policy, 1)
    cost = RooflineCost(facts, HOST)
    instance = Instance(facts, HostCache(HOST.cache_bytes), policies[0], cost)
    simulator = Simulator([instance], RooflineCost(facts, HOST), pool_policy, models)
    simulator.run(arrivals)
    instance.check_integrity()
    assert {r.request.id: r.n_tokens for r in simulator.records} == {
        a.request.id: a.n_output for a in arrivals
    }


@pytest.mark.parametrize("policy", SERVED)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 100_000), begins_alike=st.booleans())
# Two that were due at the same time gave up their KV for each other in turn.
@example(seed=232, begins_alike=False)
# One rebuilt in the room that it had given up, and gave it up again.
@example(seed=274, begins_alike=True)
def test_everything_is_served_where_all_come_at_once_and_hardly_one_fits(
    seed: int, begins_alike: bool, policy: str
) -> None:
    rng = np.random.default_rng(seed)
    host_kv_mb = int(rng.choice([0, 0, 1, 2]))
    models = [
        make_model(
            f"m{number}",
            int(rng.integers(2, 4)) * MB,
            kv=KvShape(int(rng.integers(2, 8)), n_kv_heads=4, head_dim=64, dtype_bytes=2, block_size=16),
            max_context=512,
        )
        for number in range(int(rng.integers(1, 4)))
    ]
    kv_bytes = max(model.kv.token_bytes for model in models)
    facts = replace(
        device(8, host_kv_mb),
        arena_bytes=max(model.n_bytes for model in models) + kv_bytes * int(rng.integers(150, 330)),
        host_kv_bytes=kv_bytes * int(rng.choice([0, 50, 100, 300, 600])),
        slab_bytes=3 * max(model.kv.block_bytes for model in models),
        prefill_chunk_tokens=32,
        prompt_cell_tokens=CELL,
    )
    arrivals = []
    for number in range(25):
        model = models[int(rng.integers(len(models)))]
        n_prompt, n_shared = int(rng.integers(1, 180)), int(rng.integers(1, 101))
        beginning = int(rng.integers(2))
        request = Request(
            RequestId(str(number)),
            model.id,
            n_prompt,
            max_tokens=40,
            arrival_s=0.0,
            service=ServiceLevel(1.0, 0.01),
            prefix=_prefix(model, n_prompt, n_shared, beginning, number) if begins_alike else None,
        )
        if _fits(facts, model, request):
            arrivals.append(Arrival(request, int(rng.integers(4, 40))))
    policies, pool_policy = make_policies(policy, 1)
    instance = Instance(facts, HostCache(HOST.cache_bytes), policies[0], RooflineCost(facts, HOST))
    simulator = Simulator([instance], RooflineCost(facts, HOST), pool_policy, {m.id: m for m in models})
    simulator.run(arrivals, until_s=300.0)
    instance.check_integrity()
    assert {r.request.id for r in simulator.records} == {a.request.id for a in arrivals}


def _prefix(model: ModelFacts, n_prompt: int, n_shared: int, beginning: int, number: int) -> Prefix:
    """Keys of a prompt that shares its first `n_shared` tokens with others of the same `beginning`."""
    keys = []
    for cell in range(n_prompt // CELL):
        own = number if (cell + 1) * CELL > n_shared else ""
        keys.append(PrefixKey(f"{model.id}/{beginning}/{cell}/{own}".encode()))
    return Prefix(model.id, CELL, tuple(keys))


def _fits(facts: DeviceFacts, of: ModelFacts, request: Request) -> bool:
    try:
        check_request(facts, of, request.n_prompt + request.max_tokens)
    except DoesNotFit:
        return False
    return True
