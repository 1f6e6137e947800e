"""Promise 4: no tenant starves another one, whether they share a model or not, and an operator's weights
are what overload is shared by."""

from collections.abc import Sequence
from itertools import chain

import pytest

from tokenmux.core.event import Cancelled, ModelAdded
from tokenmux.core.facts import DeviceFacts, HostFacts, KvShape
from tokenmux.core.request import ServiceLevel
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.metrics import shares
from tokenmux.scheduler.metrics.shares import Shares
from tokenmux.scheduler.policy.loading import EVICTION_MARGIN_COPIES
from tokenmux.scheduler.policy.slack import SlackPolicy
from tokenmux.simulator.simulator import Simulator
from tokenmux.testing import make_model, make_request
from tokenmux.workload.trace import Arrival

HOST = HostFacts(cache_bytes=500_000, fetch_bytes_per_s=200_000)
DEVICE = DeviceFacts(
    "one model at a time",
    arena_bytes=20_032 + 4 * 4096,
    host_kv_bytes=40 * 4096,
    copy_in_bytes_per_s=100_000,
    copy_out_bytes_per_s=100_000,
    memory_bytes_per_s=2_000_000,
    flops_per_s=1e9,
    step_overhead_s=0.002,
    copy_overhead_s=0.001,
    slab_bytes=4096,
    prefill_chunk_tokens=16,
)
KV = KvShape(2, 1, 8, 2, 8)
TTFT_S = 2.0
LOAD_S = 0.3
"""From disk and from host memory, rounded up."""


def arrival(
    at_s: float,
    tenant: str,
    model: str,
    n: int = 60,
    weight: float = 1.0,
    tenant_weight: float = 1.0,
    ttft_s: float = TTFT_S,
) -> Arrival:
    request = make_request(
        f"{tenant} {model} {at_s:.3f}", model, n, n, at_s,
        service=ServiceLevel(ttft_s, 0.1), tenant=tenant, weight=weight, tenant_weight=tenant_weight,
    )  # fmt: skip
    return Arrival(request, n)


def flood(tenant: str, models: Sequence[str], n: int, tenant_weight: float = 1.0) -> list[Arrival]:
    """Several times what the device can do: it serves about one of these in a second."""
    return [arrival(0.05 * i, tenant, models[i % len(models)], tenant_weight=tenant_weight) for i in range(n)]


class World:
    """One instance with room for one model."""

    def __init__(self, *arrivals: Sequence[Arrival]) -> None:
        self.arrivals = sorted(chain(*arrivals), key=lambda a: a.request.arrival_s)
        cost = RooflineCost(DEVICE, HOST)
        cache = HostCache(HOST.cache_bytes)
        level = ServiceLevel(TTFT_S, 0.1)
        self.instance = Instance(DEVICE, cache, SlackPolicy(), cost, service=level)
        self.simulator = Simulator([self.instance], RooflineCost(DEVICE, HOST))
        self.records = self.simulator.records
        for name in sorted({str(a.request.model) for a in self.arrivals}):
            self.simulator.apply(0, ModelAdded(0.0, make_model(name, 20_000, kv=KV, max_context=128)))

    def waits(self, tenant: str) -> list[float]:
        """Seconds to the first token of each of the tenant's requests."""
        self.simulator.run(self.arrivals)
        ttfts = [r.ttft_s for r in self.records if r.request.tenant == tenant]
        return [ttft_s for ttft_s in ttfts if ttft_s is not None]

    def seconds_had(self, until_s: float) -> dict[str, float]:
        """What each tenant had of the device by then; all requests are cancelled afterwards."""
        self.simulator.run(self.arrivals, until_s)
        had = {name: counters.gpu_s for name, counters in self.instance.metrics.tenants.items()}
        for request in list(self.instance.requests):
            self.simulator.apply(0, Cancelled(self.simulator.now_s, request))
        self.simulator.run([])
        return had


@pytest.mark.parametrize("models", [["theirs"], ["f0"], ["f0", "f1", "f2", "f3"]])
@pytest.mark.parametrize("n", [30, 120])
def test_a_flood_of_one_tenant_delays_another_by_no_more_than_a_moment(models: list[str], n: int) -> None:
    """For the same model, for another one, for many: and twice the flood makes no difference."""
    lonely = [arrival(1.0 + 5 * i, "small", "theirs", 10) for i in range(4)]
    waits = World(flood("large", models, n), lonely).waits("small")
    assert len(waits) == 4
    assert max(waits) < TTFT_S + EVICTION_MARGIN_COPIES * LOAD_S + 0.5


@pytest.mark.parametrize("ttft_s", [0.001, 100.0, 86_400.0])
def test_what_a_flood_says_of_its_patience_does_not_buy_it_a_greater_share(ttft_s: float) -> None:
    """A tenant's quantum was a share of the TTFT of its last request: a patient one between each two of a
    flood undid its account."""
    rude = [arrival(0.05 * i + 0.01, "large", "f0", 1, ttft_s=ttft_s) for i in range(60)]
    lonely = [arrival(1.0 + 5 * i, "small", "theirs", 10) for i in range(4)]
    waits = World(flood("large", ["f0"], 60), rude, lonely).waits("small")
    assert max(waits) < TTFT_S + EVICTION_MARGIN_COPIES * LOAD_S + 0.5


@pytest.mark.pure
def test_without_shares_the_longest_backlog_would_be_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the mechanism is there for: deadlines alone serve whoever is latest."""
    monkeypatch.setattr(Shares, "settle", lambda self: None)
    monkeypatch.setattr(shares, "DEFERRAL_TTFTS", 0.0)
    lonely = [arrival(1.0 + 5 * i, "small", "theirs", 10) for i in range(4)]
    assert max(World(flood("large", ["f0"], 40), lonely).waits("small")) > 20


def test_within_its_share_nobody_notices_it() -> None:
    """While everybody can be on time, who had more does not matter."""
    busy = [arrival(0.9 * i, "busy", "theirs", 30) for i in range(30)]
    rare = [arrival(0.5 + 9 * i, "rare", "theirs", 10) for i in range(3)]
    world = World(busy, rare)
    world.simulator.run(world.arrivals)
    assert all(record.n_on_time == record.n_tokens for record in world.records)


@pytest.mark.parametrize("models", [(["m"], ["m"]), (["a"], ["b"])])
def test_overload_is_shared_by_weight(models: tuple[list[str], list[str]]) -> None:
    heavy = flood("heavy", models[0], 250, tenant_weight=3.0)
    had = World(heavy, flood("light", models[1], 250)).seconds_had(until_s=30.0)
    assert had["heavy"] / had["light"] == pytest.approx(3.0, rel=0.2)


def test_a_late_comer_has_saved_nothing() -> None:
    """Who asks for nothing for a while has no claim to the time that others had meanwhile."""
    late = [arrival(15.0 + a.request.arrival_s, "late", "m") for a in flood("late", ["m"], 150)]
    early = flood("early", ["m"], 300)
    at_start = World(early, late).seconds_had(until_s=15.0)
    at_end = World(early, late).seconds_had(until_s=30.0)
    assert at_end["late"] > 5
    assert at_end["early"] - at_start["early"] == pytest.approx(at_end["late"], rel=0.3)


def test_a_heavier_request_goes_before_others_of_its_model() -> None:
    crowd = flood("t", ["m"], 60)
    plain, heavy = (arrival(2.01, "t", "m", 20, weight=weight) for weight in (1.0, 8.0))
    waits = {}
    for one in (plain, heavy):
        world = World(crowd, [one])
        world.simulator.run(world.arrivals)
        waits[one.request.weight] = next(r.ttft_s for r in world.records if r.request.id == one.request.id)
    assert waits[8.0] is not None
    assert waits[1.0] is not None
    assert waits[8.0] < waits[1.0] - TTFT_S / 2
