"""Where requests go: models stay together, the least loaded takes what is new, and what moves has time to."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tokenmux.core.event import Event
from tokenmux.core.phases import Residency
from tokenmux.core.plan import Channel
from tokenmux.core.request import Request, RequestId
from tokenmux.scheduler.policy.baselines.request_level import OneModelPerInstance
from tokenmux.scheduler.policy.instance_policy import InstancePolicy
from tokenmux.scheduler.policy.pool.placement import LeastLoaded
from tokenmux.scheduler.policy.pool.pool_policy import Move, Place, PoolPolicy, PoolView, Refuse
from tokenmux.scheduler.policy.registry import make_policies
from tokenmux.scheduler.pool.pool import Pool
from tokenmux.simulator.planner.named_models import parse_market
from tokenmux.simulator.scenario import Outcome, simulate
from tokenmux.workload.generate import traffic
from tokenmux.workload.trace import TraceRequest, arrivals


class Watched:
    """A pool's policy, and what it answered in which situation."""

    def __init__(self, policy: PoolPolicy) -> None:
        self.policy = policy
        self.name = policy.name
        self.placed: dict[RequestId, int] = {}
        self.refused: list[str] = []
        self.moved: list[tuple[str, float, Residency]] = []
        """Of each move the model, its slack in load times, and where it was."""
        self.together: list[bool] = []
        """Whether a move took all of the model's requests."""

    def place(self, request: Request, pool: PoolView) -> Place | Refuse:
        answer = self.policy.place(request, pool)
        if isinstance(answer, Place):
            self.placed[request.id] = answer.instance
        else:
            self.refused.append(answer.reason)
        return answer

    def on_event(self, index: int, event: Event, pool: PoolView) -> Sequence[Move]:
        moves = self.policy.on_event(index, event, pool)
        for move in moves:
            source = pool.instances[move.source]
            model = source.live_models[source.requests[move.request].request.model]
            load_s = source.cost.copy_s(Channel.COPY_IN, model.facts.n_bytes)
            self.moved.append((model.facts.id, (model.due_s - pool.now_s) / load_s, model.residency))
            self.together.append(len(moves) == model.n_live)
        return moves

    def on_left(self, index: int, request: Request) -> None:
        self.policy.on_left(index, request)


def run(
    lines: list[TraceRequest],
    n_instances: int,
    policy: str = "slack",
    rebalances: bool = True,
    models: Sequence[str] = ("40*qwen2.5-7b",),
) -> tuple[Watched, Outcome]:
    market = parse_market(list(models), {})
    policies, pool_policy = make_policies(policy, n_instances)
    watched = Watched(LeastLoaded(rebalances) if policy == "slack" else pool_policy)

    def watch(_: int) -> tuple[Sequence[InstancePolicy], PoolPolicy]:
        return policies, watched

    return watched, simulate(market, arrivals(lines, market.max_context), n_instances, watch)


def line(at_s: float, model: int, n_output: int = 200) -> TraceRequest:
    return TraceRequest(at_s, f"qwen2.5-7b-{model}", 300, n_output)


def busy(n_models: int, rate: float, duration_s: float) -> list[TraceRequest]:
    rates = dict.fromkeys([f"qwen2.5-7b-{index}" for index in range(n_models)], rate)
    return [TraceRequest(r.arrival_s, r.model, 300, 200) for r in traffic(np.random.default_rng(0), rates,
                                                                          duration_s)]  # fmt: skip


def crowd(at_s: float, n: int = 300) -> list[TraceRequest]:
    """More of one model than an instance can prefill within a TTFT."""
    return [TraceRequest(at_s + 0.01 * i, "qwen2.5-7b-0", 3000, 100) for i in range(n)]


def test_a_crowd_spreads_over_idle_instances_and_gathers_again() -> None:
    later = [line(200.0 + 0.01 * i, 0) for i in range(5)]
    watched, outcome = run(crowd(0.0) + later, 4)
    crowded = Counter(watched.placed[r.request.id] for r in outcome.records if r.request.arrival_s < 100)
    assert len(crowded) == 4
    assert min(crowded.values()) > 20
    assert outcome.summary().tokens_on_time > 0.99
    assert len({watched.placed[r.request.id] for r in outcome.records if r.request.arrival_s > 100}) == 1


def test_a_crowd_stays_where_it_is_while_other_instances_are_busy() -> None:
    others = [line(0.1 * i, 1 + i % 30) for i in range(600)]
    lines = sorted(crowd(20.0, 100) + others, key=lambda at: at.arrival_s)
    watched, outcome = run(lines, 2, rebalances=False)
    crowded = {watched.placed[r.request.id] for r in outcome.records if r.request.n_prompt == 3000}
    assert len(crowded) == 1


def test_new_models_spread_and_requests_follow_their_model() -> None:
    watched, _ = run([line(0.01 * i, i % 6) for i in range(24)], 3, rebalances=False)
    where = list(watched.placed.values())
    homes = where[:6]
    assert Counter(homes) == {0: 2, 1: 2, 2: 2}
    assert where == homes * 4


def test_a_model_without_requests_has_no_home_any_more() -> None:
    """Its next request, which has time for a load, goes where there is least to do then."""
    again = replace(line(61.0, 0), ttft_s=60.0)
    watched, _ = run([line(0.0, 0, 20), *(line(60.0 + 0.01 * i, 1, 200) for i in range(3)), again], 2)
    placed = list(watched.placed.values())
    assert placed[0] == placed[1] == 0
    assert placed[-1] == 1


def test_without_moves_some_wait_longer() -> None:
    lines = busy(40, 0.13, 120.0)
    moving, with_moves = run(lines, 3)
    _, without = run(lines, 3, rebalances=False)
    assert moving.moved
    assert with_moves.summary().tokens_on_time > without.summary().tokens_on_time


@pytest.mark.parametrize("seconds", [1e-9, 1e9])
def test_what_one_request_says_of_its_patience_does_not_stop_the_balancing(seconds: float) -> None:
    """The next look was a share of the shortest TTFT on the instance: one request alone with 1e9 s, and
    there was none any more."""
    odd = TraceRequest(0.0, "qwen2.5-7b-39", 300, 200, ttft_s=seconds, tpot_s=seconds)
    lines = sorted([odd, *busy(39, 0.13, 120.0)], key=lambda at: at.arrival_s)
    watched, _ = run(lines, 3)
    assert len(watched.moved) > 10


def test_only_models_that_are_not_there_and_have_time_move_and_move_whole() -> None:
    watched, outcome = run(busy(36, 0.1, 60.0), 4)
    assert len(watched.moved) > 10
    assert all(watched.together)
    assert all(residency is Residency.HOST for _, _, residency in watched.moved)
    assert outcome.summary().tokens_on_time == 1, "nobody is late, so nobody moves in haste"
    assert min(slack for _, slack, _ in watched.moved) >= 3


class Narrow:
    """A pool in which one instance is open, but takes nothing."""

    def __init__(self, pool: PoolView, shut: int) -> None:
        self.now_s, self.instances, self.open, self.facts = pool.now_s, pool.instances, pool.open, pool.facts
        self._pool, self._shut = pool, shut

    def takes(self, index: int, request: Request) -> bool:
        return index != self._shut and self._pool.takes(index, request)


class Shutting(Watched):
    """The third instance is drained from the beginning, or takes nothing."""

    def __init__(self, policy: PoolPolicy, drains: bool) -> None:
        super().__init__(policy)
        self.drains = drains
        self.targets: Counter[int] = Counter()

    def seen(self, pool: PoolView) -> PoolView:
        if not self.drains:
            return Narrow(pool, shut=2)
        if 2 in pool.open:
            assert isinstance(pool, Pool)
            pool.drain(2)
        return pool

    def place(self, request: Request, pool: PoolView) -> Place | Refuse:
        return super().place(request, self.seen(pool))

    def on_event(self, index: int, event: Event, pool: PoolView) -> Sequence[Move]:
        moves = super().on_event(index, event, self.seen(pool))
        self.targets.update(move.target for move in moves)
        return moves


@pytest.mark.parametrize(("policy", "n_moves"), [("slack", 30), ("request-level", 1)])
@pytest.mark.parametrize("drains", [True, False])
def test_models_move_only_where_they_are_taken(policy: str, n_moves: int, drains: bool) -> None:
    """And others move although the idlest instance takes none."""
    market = parse_market(["40*qwen2.5-7b"], {})
    policies, pool_policy = make_policies(policy, 3)
    watched = Shutting(pool_policy, drains)
    trace = arrivals(busy(40, 0.1, 60.0), market.max_context)
    simulate(market, trace, 3, lambda _: (policies, watched))
    assert set(watched.placed.values()) == {0, 1}
    assert watched.targets.total() >= n_moves
    assert set(watched.targets) <= {0, 1}
    assert isinstance(pool_policy, OneModelPerInstance) or pool_policy.n_remembered == 0


def test_an_instance_that_falls_idle_takes_who_waits_longest() -> None:
    lines = [line(0.0, 0, 2000), line(0.01, 1, 50), line(0.02, 2), line(0.03, 4, 10), line(0.04, 3)]
    watched, outcome = run(lines, 2, "request-level")
    assert [model for model, *_ in watched.moved] == ["qwen2.5-7b-2", "qwen2.5-7b-3"]
    ended = sorted(outcome.records, key=lambda record: record.end_s)
    assert [str(record.request.model)[-1] for record in ended] == ["1", "4", "2", "3", "0"]


def test_dedicated_refuses_a_model_without_a_device() -> None:
    watched, outcome = run([line(0.0, 0), line(1.0, 1), line(2.0, 2), line(3.0, 0)], 2, "dedicated")
    assert watched.refused == ["qwen2.5-7b-2 has no device of its own; the pool needs one more"]
    homes: dict[str, set[int]] = defaultdict(set)
    for record in outcome.records:
        homes[record.request.model].add(watched.placed[record.request.id])
    assert all(len(home) == 1 for home in homes.values())


def test_nothing_is_remembered_of_requests_that_are_over() -> None:
    lines = sorted(busy(24, 0.4, 60.0) + crowd(20.0, 100), key=lambda at: at.arrival_s)
    watched, outcome = run(lines, 3)
    assert watched.moved
    assert len(outcome.records) == len(lines)
    assert isinstance(watched.policy, LeastLoaded)
    assert watched.policy.n_remembered == 0


def test_a_model_returns_to_where_its_weights_are() -> None:
    """Unless that instance is busier by more than a load would take: with a far deadline a load costs
    little."""
    for ttft_s, home in ((2.0, 0), (60.0, 1)):
        lines = [line(0.0, 0), line(0.1, 1), line(30.0, 2, 2000), replace(line(30.1, 0), ttft_s=ttft_s)]
        watched, outcome = run(lines, 2, rebalances=False)
        placed = [watched.placed[a.request.id] for a in outcome.arrivals]
        assert placed == [0, 1, 0, home]


def test_a_model_asks_for_what_its_strictest_request_needs() -> None:
    """Whichever of its requests came first, the model with an interactive one keeps its instance busier."""
    batch, interactive = (
        replace(line(0.0, 0, 3000), ttft_s=t, tpot_s=p) for t, p in ((600.0, 2.0), (2.0, 0.03))
    )
    for first, second in ((batch, interactive), (interactive, batch)):
        lines = [first, replace(second, arrival_s=1.0), line(1.1, 1, 3000), line(4.0, 2)]
        watched, outcome = run(lines, 2)
        placed = [watched.placed[a.request.id] for a in outcome.arrivals]
        assert placed == [0, 0, 1, 1]


@pytest.mark.parametrize("rebalances", [False, True])
def test_giants_for_which_there_are_too_few_instances_share_one(rebalances: bool) -> None:
    """The third went to the small ones, which lay less idle: there nobody steps while it comes in."""
    kinds = ["4*qwen2.5-32b", "8*llama3.2-3b"]
    giant, *more = (f"qwen2.5-32b-{i}" for i in range(4))
    names = [giant, *(f"llama3.2-3b-{i}" for i in range(8)), *more]
    lines = [TraceRequest(0.01 * i, name, 300, 200) for i, name in enumerate(names)]
    watched, outcome = run(lines, 2, rebalances=rebalances, models=kinds)
    giants, small = set(), set()
    for record in outcome.records:
        where = watched.placed[record.request.id]
        (small if record.request.model.startswith("llama") else giants).add(where)
    assert len(giants) == len(small) == 1
    assert giants != small
    assert all(r.n_on_time == r.n_tokens for r in outcome.records if r.request.model.startswith("llama"))
