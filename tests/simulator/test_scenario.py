"""Whole simulations: deterministic, nothing lost under any policy, and the figures of merit mean what they
say."""

import numpy as np
import pytest

from tokenmux.core.cost import StepWork
from tokenmux.core.effects import decisions as decided
from tokenmux.core.errors import ConfigError, DoesNotFit
from tokenmux.core.facts import ModelId
from tokenmux.core.plan import AtOnce, Channel, Operation
from tokenmux.core.request import Request, RequestId, ServiceLevel
from tokenmux.scheduler.policy.registry import POLICIES, make_policies, make_policy
from tokenmux.simulator.architectures import architecture
from tokenmux.simulator.hardware import GB
from tokenmux.simulator.scenario import Hardware, Market, level_for, market, paper_market, simulate
from tokenmux.workload.generate import traffic
from tokenmux.workload.shape import clipped
from tokenmux.workload.trace import Arrival, arrivals


def workload(
    n_models: int, rate: float, duration_s: float, service: ServiceLevel | None = None
) -> tuple[Market, list[Arrival]]:
    names = [f"m{index}" for index in range(n_models)]
    market = paper_market(names)
    trace = traffic(np.random.default_rng(0), dict.fromkeys(names, rate), duration_s)
    return market, arrivals(clipped(trace, 4096), market.max_context, service)


def test_a_pool_has_the_level_of_the_strictest_quarter() -> None:
    levels = [ServiceLevel(600.0, 2.0)] * 7 + [ServiceLevel(2.0, 0.05)] * 3
    requests = [
        Arrival(Request(RequestId(str(i)), ModelId("m"), 8, 8, float(i), level), 8)
        for i, level in enumerate(levels)
    ]
    assert level_for(requests) == ServiceLevel(2.0, 0.05)
    assert level_for(requests[:8]) == ServiceLevel(600.0, 2.0)
    assert level_for([]) == ServiceLevel()


@pytest.mark.parametrize("policy", POLICIES)
def test_every_accepted_request_is_served_in_full(policy: str) -> None:
    market, requests = workload(12, 0.1, 40.0)
    outcome = simulate(market, requests, 4, policy)
    refused = {request.id for request in outcome.refused}
    expected = {a.request.id: a.n_output for a in requests if a.request.id not in refused}
    assert {r.request.id: r.n_tokens for r in outcome.records} == expected
    assert bool(refused) is (policy == "dedicated")
    for instance in outcome.simulator.instances:
        instance.check_integrity()
        assert not instance.requests


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_trace_gives_the_same_decisions(policy: str) -> None:
    market, requests = workload(10, 0.2, 20.0)

    def decisions() -> list[tuple[int, float, Operation | AtOnce]]:
        seen: list[tuple[int, float, Operation | AtOnce]] = []
        simulate(
            market,
            requests,
            3,
            policy,
            on_effects=lambda i, at_s, effects: seen.extend((i, at_s, what) for what in decided(effects)),
        )
        return seen

    first = decisions()
    assert len(first) > 100
    assert first == decisions()


def test_slack_keeps_more_on_time_than_the_baselines() -> None:
    market, requests = workload(30, 0.1, 60.0)
    shares = {p: simulate(market, requests, 4, p).summary().tokens_on_time for p in POLICIES}
    assert shares["slack"] > 0.98
    assert max(shares[p] for p in ("aegaeon", "request-level", "dedicated")) < 0.9


def test_models_move_off_a_loaded_instance() -> None:
    market, requests = workload(40, 0.1, 60.0)
    outcome = simulate(market, requests, 4)
    assert outcome.simulator.n_moves > 0
    assert outcome.summary().n_tokens == sum(a.n_output for a in requests)


def test_a_small_host_cache_costs_fetches_and_loses_nothing() -> None:
    market, requests = workload(12, 0.1, 40.0)
    small = Hardware(host_cache_bytes=60 * GB)
    outcome = simulate(market, requests, 4, "slack", small)
    assert outcome.busy(Channel.FETCH) > 0
    assert simulate(market, requests, 4).busy(Channel.FETCH) == 0
    assert outcome.summary().n_tokens == sum(a.n_output for a in requests)


def test_refused_requests_count_as_late() -> None:
    market, requests = workload(10, 0.1, 30.0)
    outcome = simulate(market, requests, 5, "dedicated")
    assert outcome.refused
    summary = outcome.summary()
    assert summary.n_tokens == sum(a.n_output for a in requests)
    assert summary.tokens_on_time < 0.9


def test_instances_may_be_of_different_kinds_each_with_its_own_step_times() -> None:
    market, requests = workload(6, 0.2, 30.0)
    outcome = simulate(market, requests, 3, hardware=Hardware(mixed=("H100", "H20")))
    instances = outcome.simulator.instances
    assert [i.device.arena_bytes // GB for i in instances] == [72, 86, 72]
    truths = outcome.simulator.truths
    a_row, facts = StepWork(decode_rows=8), market.facts[ModelId("m0")]
    assert truths[1].step_s(facts, a_row) > truths[0].step_s(facts, a_row) == truths[2].step_s(facts, a_row)
    alone = simulate(market, requests, 3, hardware=Hardware("H20"))
    assert alone.simulator.truths[0].step_s(facts, a_row) == truths[1].step_s(facts, a_row)


def test_a_pinned_model_stays_on_its_device_whatever_else_is_asked_for() -> None:
    market, requests = workload(12, 0.3, 40.0)
    quiet = ModelId("m11")
    rest = [a for a in requests if a.request.model != quiet]
    outcome = simulate(market, rest, 2, pinned=[quiet])
    at = [i for i in outcome.simulator.instances if quiet in i.resident_models]
    assert len(at) == 1
    assert sum(i.metrics.of(quiet).n_swaps for i in outcome.simulator.instances) == 1
    with pytest.raises(DoesNotFit, match="to pin m11"):
        simulate(market, rest, 2, hardware=Hardware(usable=0.35), pinned=[quiet])


def test_slower_steps_take_longer() -> None:
    market, requests = workload(3, 0.2, 30.0)
    normal, slow = (simulate(market, requests, 1, hardware=Hardware(slower=s)) for s in (1.0, 1.25))
    assert slow.simulator.instances[0].metrics.busy_s[Channel.COMPUTE] > 0
    assert slow.seconds > normal.seconds


def test_what_a_server_cannot_run_says_why() -> None:
    for name in ("slack", "request-level", "aegaeon"):
        assert make_policy(name).name == name
    for wrong, why in (
        (lambda: make_policy("oracle"), "which only a simulation can tell it"),
        (lambda: make_policies("oracle", 1), "must be told how long answers will be"),
        (lambda: make_policy("dedicated"), "an instance of its own"),
        (lambda: make_policy("fifo"), "a server offers slack, "),
        (lambda: make_policies("fifo", 3), "there are slack, "),
    ):
        with pytest.raises(ConfigError, match=why):
            wrong()


@pytest.mark.parametrize("n_instances", [1, 2, 4])
def test_stopping_when_all_is_late_changes_nothing_that_is_on_time(n_instances: int) -> None:
    """From a hopeless pool to an ample one."""
    market, requests = workload(10, 0.3, 40.0, ServiceLevel(1.0, 0.02))
    whole, stopped = (simulate(market, requests, n_instances, to_the_end=end) for end in (True, False))
    assert len(stopped.records) == len(whole.records) == len(requests)
    exact, early = whole.summary(), stopped.summary()
    assert early.n_tokens == exact.n_tokens
    assert early.tokens_on_time == exact.tokens_on_time
    assert early.requests_on_time == exact.requests_on_time
    assert early.goodput_tokens_per_s >= exact.goodput_tokens_per_s
    if n_instances == 1:
        assert stopped.seconds < 0.8 * whole.seconds, "the small pool was too large to show anything"
        assert stopped.n_tokens_not_drawn > 0
    if n_instances == 4:
        assert early.ttft_p50_s == exact.ttft_p50_s


def test_a_step_that_is_under_way_when_the_last_token_is_due_still_counts() -> None:
    """Steps take a little longer than a TPOT: what the first token had to spare is used up towards the
    end, at another token each time."""
    n_straddling = 0
    for late_by in range(40):
        market, _ = workload(1, 0.1, 1.0)
        model = next(iter(market.facts))
        service = ServiceLevel(ttft_s=0.98 + 0.0005 * late_by, tpot_s=0.008)
        request = Request(RequestId("r"), model, 100, 100, 0.0, service)
        whole, stopped = (
            simulate(market, [Arrival(request, 100)], 1, "request-level", to_the_end=end).summary()
            for end in (True, False)
        )
        assert stopped.tokens_on_time == whole.tokens_on_time
        n_straddling += 0.0 < whole.tokens_on_time < 1.0
    assert n_straddling > 5


@pytest.mark.parametrize("seed", range(6))
def test_instances_that_share_a_tiny_host_cache_all_get_their_fetches(seed: int) -> None:
    """What one holds in the cache while it copies, another may have waited for to be let go."""
    names = {f"m{i}": architecture(("qwen2.5-32b", "llama3.2-3b", "qwen2.5-7b")[i % 3]) for i in range(12)}
    made = market(names)
    trace = traffic(np.random.default_rng(seed), dict.fromkeys(names, 0.05), 30.0)
    requests = arrivals(clipped(trace, 4096), made.max_context)
    outcome = simulate(made, requests, 6, "slack", Hardware(host_cache_bytes=70 * GB))
    assert outcome.summary().n_tokens == sum(a.n_output for a in requests)


def test_a_host_has_eight_devices_whatever_instances_they_form() -> None:
    assert [Hardware(n_devices=n).instances_per_host for n in (1, 2, 3, 4, 8, 16)] == [8, 4, 2, 2, 1, 1]
    usual = Hardware()
    assert usual.with_host_memory(2000 * GB) == usual
