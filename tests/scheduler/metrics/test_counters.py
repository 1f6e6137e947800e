"""What counts as on time, who pays for the device, and why models were swapped in: each against its
definition."""

from collections import Counter
from itertools import pairwise
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.instance.body import Body
from tests.scheduler.instance.scenes import NEXT, A, B, R, a_body, arrive, load, running
from tokenmux.core.effects import CopyEnded, Effects, ModelLoaded, StepEnded
from tokenmux.core.event import Arrived, CopyDone, ModelAdded, ModelWanted, Paused, Resumed
from tokenmux.core.facts import DeviceFacts, HostFacts, KvShape, ModelId
from tokenmux.core.plan import Activate, Channel, Compact, Evict, Fetch, PageIn, PageOut, Plan, Step
from tokenmux.core.record import RequestRecord
from tokenmux.core.request import FinishReason, Request, RequestId, ServiceLevel
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.core.started import (
    StartedActivation,
    StartedCompaction,
    StartedCopy,
    StartedPageIn,
    StartedPageOut,
    SwapReason,
)
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.metrics.counters import (
    DEDICATED_WINDOW_S,
    MAX_TENANTS,
    OTHERS,
    POOL,
    Metrics,
    ServiceCounters,
)
from tokenmux.scheduler.metrics.counting import count, count_on_time, inner_gaps
from tokenmux.scheduler.metrics.histogram import interval
from tokenmux.scheduler.policy.slack import SlackPolicy
from tokenmux.simulator.simulator import Simulator
from tokenmux.testing import make_model
from tokenmux.workload.trace import Arrival

eighths = st.integers(0, 80).map(lambda n: n / 8)
"""Times whose sums are exact, so that `exactly on time` is hit, and hit on both sides."""


@settings(max_examples=300)
@given(
    arrival_s=eighths,
    ttft_s=eighths,
    tpot_s=eighths,
    index=st.integers(0, 5),
    gaps_s=st.lists(eighths, max_size=12),
)
def test_a_token_is_on_time_when_it_is_there_by_its_deadline(
    arrival_s: float, ttft_s: float, tpot_s: float, index: int, gaps_s: list[float]
) -> None:
    """Token i is due at arrival + TTFT + i * TPOT, counted from whichever token a step draws first."""
    request = Request(RequestId("r"), ModelId("m"), 1, 20, arrival_s, ServiceLevel(ttft_s, tpot_s))
    ends_s = tuple(arrival_s + sum(gaps_s[: i + 1]) for i in range(len(gaps_s)))
    naive = sum(end_s <= arrival_s + ttft_s + (index + i) * tpot_s for i, end_s in enumerate(ends_s))
    assert count_on_time(request.deadline_s(index), tpot_s, ends_s) == naive


@given(st.lists(eighths, min_size=1, max_size=8))
def test_gaps_within_a_step_are_counted_as_one_by_one(gaps_s: list[float]) -> None:
    ends_s = tuple(sum(gaps_s[: i + 1]) for i in range(len(gaps_s)))
    one_by_one = Counter(interval(end_s - before_s) for before_s, end_s in pairwise(ends_s))
    assert dict(inner_gaps(ends_s)) == one_by_one


def record(n_tokens: int, first_token_s: float | None, last_token_s: float | None) -> RequestRecord:
    request = Request(RequestId("r"), ModelId("m"), 1, 20, 10.0)
    return RequestRecord(request, FinishReason.STOP, first_token_s, 20.0, last_token_s, n_tokens, 0)


def test_a_record_derives_its_latencies() -> None:
    assert record(5, 11.0, 13.0).ttft_s == 1.0
    assert record(5, 11.0, 13.0).tpot_s == 0.5
    assert record(1, 11.0, 11.0).tpot_s is None, "one token has no time between"
    assert record(0, None, None).ttft_s is None


# ── a whole run ─────────────────────────────────────────────────────────────────────────────────────────────

GB = 10**9
DEVICE = DeviceFacts("imagined", 24 * GB, 8 * GB, 16e9, 16e9, 2e12, 4e14, 0.004, 1e-4, 256 << 20)
HOST = HostFacts(200 * GB, 8e9)
SHAPE = KvShape(28, 4, 128, 2, 16)


class Run:
    """Four models that never fit together and three tenants, through the simulator; every step is also
    noted down."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        models = {
            ModelId(name): make_model(name, 10 * GB, kv=SHAPE, max_context=4096, n_parameters=7 * GB)
            for name in ("m0", "m1", "m2", "m3")
        }
        self.steps: list[StepEnded] = []
        self.copies: list[StartedCopy] = []
        cost = RooflineCost(DEVICE, HOST)
        instance = Instance(DEVICE, HostCache(HOST.cache_bytes), SlackPolicy(), cost)
        simulator = Simulator([instance], RooflineCost(DEVICE, HOST), None, models, self._note)
        self.metrics, self.records = instance.metrics, simulator.records
        at_s = 0.0
        arrivals = []
        for number in range(25):
            at_s += float(rng.exponential(1.0))
            request = Request(
                RequestId(f"r{number}"), ModelId(f"m{rng.integers(4)}"), int(rng.integers(1, 3000)), 300,
                at_s,
                tenant=str(rng.choice(["bank", "shop", "school"])),
            )  # fmt: skip
            arrivals.append(Arrival(request, int(rng.integers(1, 200))))
        simulator.run(arrivals)

    def _note(self, index: int, at_s: float, effects: Effects) -> None:
        self.steps += [effect for effect in effects if isinstance(effect, StepEnded)]
        self.copies += [effect.started for effect in effects if isinstance(effect, CopyEnded)]


@pytest.fixture(scope="module", params=[0, 1])
def run(request: pytest.FixtureRequest) -> Run:
    return Run(request.param)


def test_tenants_add_up_to_models_and_models_to_the_device(run: Run) -> None:
    metrics = run.metrics
    models, tenants = metrics.models.values(), metrics.tenants.values()
    exposed_s = sum(m.swap_exposed_s for m in models)
    assert exposed_s > 0
    whole = metrics.busy_s[Channel.COMPUTE] + exposed_s
    assert sum(t.gpu_s for t in tenants) == pytest.approx(whole)
    assert sum(m.service.gpu_s for m in models) == pytest.approx(whole)
    assert {name for name in metrics.tenants if name != POOL} == {"bank", "shop", "school"}
    for name in (
        "n_requests",
        "n_requests_on_time",
        "n_prompt_tokens",
        "n_tokens",
        "n_tokens_on_time",
        "attained",
    ):
        by_model = sum(getattr(m.service, name) for m in models)
        assert by_model == pytest.approx(sum(getattr(t, name) for t in tenants)), name


def test_counters_say_what_the_records_say(run: Run) -> None:
    for name, counters in run.metrics.tenants.items():
        own = [r for r in run.records if r.request.tenant == name]
        assert counters.n_requests == len(own)
        assert counters.n_tokens == sum(r.n_tokens for r in own)
        assert counters.n_tokens_on_time == sum(r.n_on_time for r in own)
        assert counters.n_requests_on_time == sum(r.is_on_time for r in own)
        assert counters.attained == pytest.approx(sum(r.artifact_attainment or 0.0 for r in own))
        assert counters.ttft.n == len([r for r in own if r.ttft_s is not None])
        assert counters.tpot.n == len([r for r in own if r.tpot_s is not None])


def test_every_gap_between_two_tokens_is_counted_once(run: Run) -> None:
    """A request's gaps add up to the time from its first token to its last."""
    for name, counters in run.metrics.models.items():
        own = [r for r in run.records if r.request.model == name]
        assert counters.service.gaps.n == sum(r.n_tokens - 1 for r in own)
        total_s = sum((r.last_token_s or 0.0) - (r.first_token_s or 0.0) for r in own)
        assert counters.service.gaps.total_s == pytest.approx(total_s)


def test_swaps_have_reasons(run: Run) -> None:
    n_swaps = sum(isinstance(started, StartedActivation) for started in run.copies)
    models = run.metrics.models.values()
    assert sum(m.n_swaps for m in models) == n_swaps
    assert all(m.swaps[SwapReason.FIRST] == 1 for m in models)
    assert sum(m.swaps[SwapReason.AGAIN] for m in models) == n_swaps - len(models)


def test_models_with_work_are_counted_in_device_seconds(run: Run) -> None:
    """Against sweeping over the records: at each moment, how many models had unfinished requests?"""
    moments = sorted({r.request.arrival_s for r in run.records} | {r.end_s for r in run.records})
    any_s = model_s = 0.0
    for start_s, end_s in pairwise(moments):
        alive = {r.request.model for r in run.records if r.request.arrival_s <= start_s and r.end_s >= end_s}
        any_s += (end_s - start_s) * bool(alive)
        model_s += (end_s - start_s) * len(alive)
    assert run.metrics.work_s == pytest.approx(any_s)
    assert run.metrics.model_work_s == pytest.approx(model_s)
    last_s = max(r.request.arrival_s for r in run.records)
    assert run.metrics.n_models_used(last_s) == 4
    assert run.metrics.n_models_used(last_s + DEDICATED_WINDOW_S + 1) == 0


# ── single moments ──────────────────────────────────────────────────────────────────────────────────────────


def swaps(body: Body) -> dict[SwapReason, int]:
    return {reason: n for reason, n in body.instance.metrics.of(A.id).swaps.items() if n}


def test_a_swap_that_an_operator_asked_for_is_the_pools() -> None:
    body = a_body(A, B)
    body.apply(ModelWanted(0.0, A.id, wanted=True))
    body.plan(Channel.FETCH, Plan(Fetch(A.id)))
    body.complete(Channel.FETCH)
    body.plan(Channel.COPY_IN, Plan(Activate(A.id)))
    body.now_s += 2.0
    body.complete(Channel.COPY_IN)
    assert swaps(body) == {SwapReason.OPERATOR: 1}
    assert body.instance.metrics.of(A.id).swap_exposed_s == 2.0
    assert body.instance.metrics.tenants[POOL].gpu_s == 2.0


def test_a_swap_ahead_of_requests_and_one_for_a_request_that_had_to_wait_again() -> None:
    body = a_body(A, B)
    load(body)
    assert swaps(body) == {SwapReason.AHEAD: 1}
    arrive(body, "r")
    body.plan(Channel.COPY_IN, Plan(Activate(A.id), (Evict(A.id),)))
    body.complete(Channel.COPY_IN)
    assert swaps(body) == {SwapReason.AHEAD: 1, SwapReason.AGAIN: 1}


def test_a_clients_pause_is_no_gap() -> None:
    body = running()
    body.apply(Paused(body.now_s, R))
    body.now_s += 500.0
    body.apply(Resumed(body.now_s, R))
    body.plan(Channel.COMPUTE, Plan(Step(A.id, (NEXT,))))
    body.complete(Channel.COMPUTE)
    gaps = body.instance.metrics.of(A.id).service.gaps
    assert gaps.n == 1
    assert gaps.total_s < 1.0


def test_nothing_counts_before_the_first_event() -> None:
    body = a_body()
    body.now_s = 1e6
    body.apply(ModelAdded(1e6, A))
    body.apply(Arrived(1e6, Request(R, A.id, 4, 4, 1e6)))
    body.apply(ModelAdded(1e6 + 2.0, B))
    assert body.instance.metrics.work_s == 2.0
    assert body.instance.metrics.of(B.id).last_asked_s == -inf


def loaded(exposed_s: float, *tenants: str) -> ModelLoaded:
    facts = make_model("m", 10)
    started = StartedActivation(0, 0.0, Activate(facts.id), facts, facts.images, 10, SwapReason.FIRST, 0.0)
    return ModelLoaded(started, 4.0, exposed_s, tenants)


def test_tenants_beyond_the_limit_are_counted_together() -> None:
    metrics = Metrics()
    own = {name: metrics.tenant(name) for name in map(str, range(MAX_TENANTS))}
    late = metrics.tenant("late")
    assert late is metrics.tenants[OTHERS]
    assert metrics.tenant("later") is late
    assert metrics.tenant("7") is own["7"]
    assert len(metrics.tenants) == MAX_TENANTS + 1
    count(metrics, 0.0, (loaded(3.0),))
    assert metrics.tenants[POOL].gpu_s == 3.0


def test_the_exposed_part_of_a_swap_is_shared_by_request() -> None:
    metrics = Metrics()
    a, b = metrics.tenant("a"), metrics.tenant("b")
    count(metrics, 0.0, (loaded(3.0, "a", "b", "a"),))
    assert (a.gpu_s, b.gpu_s) == (2.0, 1.0)


def test_kv_that_was_paged_is_counted_in_bytes() -> None:
    metrics = Metrics()
    came = StartedPageIn(0, 0.0, PageIn((R,)), (), 100)
    went = StartedPageOut(1, 0.0, PageOut((R,)), (), 30)
    moved = StartedCompaction(2, 0.0, Compact(7), (), 7)
    for started, error in ((came, ""), (went, ""), (went, ""), (went, "the copy failed"), (moved, "")):
        count(metrics, 2.0, (CopyEnded(started, CopyDone(2.0, started.id, error)),))
    assert (metrics.paged_in_bytes, metrics.paged_out_bytes) == (100, 60)


def test_copies_that_were_superseded_are_counted_and_their_bytes_are_not() -> None:
    metrics = Metrics()
    went = StartedPageOut(1, 0.0, PageOut((R,)), (), 30)
    for superseded in (False, True, True):
        count(metrics, 2.0, (CopyEnded(went, CopyDone(2.0, 1, superseded=superseded)),))
    assert (metrics.n_superseded, metrics.paged_out_bytes) == (2, 30)


def test_a_failed_request_is_not_on_time() -> None:
    request = Request(RequestId("r"), ModelId("m"), 1, 20, 10.0)
    counters = ServiceCounters()
    for reason in (FinishReason.STOP, FinishReason.FAILED):
        counters.count_end(RequestRecord(request, reason, 11.0, 20.0, 13.0, 3, 3))
    assert (counters.n_requests, counters.n_requests_on_time, counters.n_requests_failed) == (2, 1, 1)
