"""No rule knows how long an answer will be: lengthening what is unfinished at a moment changes no decision
before it.

Each world is simulated twice, the second time with every request that is unfinished at time T, and all that
come later, longer by 137 tokens. What a client asked for at most (`max_tokens`) is the same in both. Under
`oracle`, which is told the lengths, the decisions must differ: that shows that the test would see a leak.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from tokenmux.core.event import Event
from tokenmux.core.plan import IDLE, Channel, Plan, Step
from tokenmux.core.record import RequestRecord
from tokenmux.core.request import Request, RequestId, ServiceLevel
from tokenmux.scheduler.policy.instance_policy import InstancePolicy, InstanceView
from tokenmux.scheduler.policy.pool.pool_policy import Move, Place, PoolPolicy, PoolView, Refuse
from tokenmux.scheduler.policy.registry import make_policies
from tokenmux.simulator.architectures import architecture
from tokenmux.simulator.hardware import GB
from tokenmux.simulator.scenario import Hardware, Market, market, simulate
from tokenmux.workload.generate import traffic
from tokenmux.workload.trace import Arrival, arrivals

LONGER = 137
MAX_PROMPT, MAX_TOKENS = 1024, 3000
AS_USUAL = Hardware()
Decision = tuple[float, str, object]


class _Noted:
    """An instance's policy, everything it answers written down."""

    def __init__(self, policy: InstancePolicy, name: str, log: list[Decision]) -> None:
        self.name = name
        self._policy = policy
        self._log = log

    def on_event(self, event: Event, view: InstanceView) -> None:
        self._policy.on_event(event, view)

    def plan(self, channel: Channel, view: InstanceView) -> Plan:
        plan = self._policy.plan(channel, view)
        if plan != IDLE:
            self._log.append((view.now_s, self.name, plan))
        return plan

    def interrupts(self, step: Step, event: Event, view: InstanceView) -> bool:
        broken = self._policy.interrupts(step, event, view)
        if broken:
            self._log.append((view.now_s, self.name, "interrupts"))
        return broken


class _NotedPool:
    """A pool's policy, everything it answers written down."""

    def __init__(self, policy: PoolPolicy, log: list[Decision]) -> None:
        self.name = policy.name
        self._policy = policy
        self._log = log

    def place(self, request: Request, pool: PoolView) -> Place | Refuse:
        placed = self._policy.place(request, pool)
        self._log.append((pool.now_s, request.id, placed))
        return placed

    def on_event(self, index: int, event: Event, pool: PoolView) -> Sequence[Move]:
        moves = self._policy.on_event(index, event, pool)
        if moves:
            self._log.append((pool.now_s, f"{index}", tuple(moves)))
        return moves

    def on_left(self, index: int, request: Request) -> None:
        self._policy.on_left(index, request)


@dataclass(frozen=True)
class World:
    market: Market
    arrivals: list[Arrival]
    n_instances: int
    hardware: Hardware = AS_USUAL

    def decisions(
        self, policy: str, lengths: dict[RequestId, int]
    ) -> tuple[list[Decision], list[RequestRecord]]:
        """All decisions in their order, and how each request ended, where answers are that long."""
        log: list[Decision] = []

        def policies(n: int) -> tuple[Sequence[InstancePolicy], PoolPolicy]:
            own, pool = make_policies(policy, n, lengths)
            return [_Noted(p, f"{i}", log) for i, p in enumerate(own)], _NotedPool(pool, log)

        requests = [Arrival(a.request, lengths[a.request.id]) for a in self.arrivals]
        return log, simulate(self.market, requests, self.n_instances, policies, self.hardware).records


def world(
    kinds: list[str],
    rate: float,
    duration_s: float,
    n_instances: int,
    services: list[ServiceLevel],
    hardware: Hardware = AS_USUAL,
) -> World:
    """Models of these architectures, requests with these services in turn."""
    names = {f"m{i}": architecture(kind) for i, kind in enumerate(kinds)}
    catalogue = market(names)
    trace = traffic(np.random.default_rng(3), dict.fromkeys(names, rate), duration_s)
    requests = []
    for index, arrival in enumerate(arrivals(trace, catalogue.max_context)):
        service = services[index % len(services)]
        n_prompt = min(arrival.request.n_prompt, MAX_PROMPT)
        request = replace(arrival.request, n_prompt=n_prompt, max_tokens=MAX_TOKENS, service=service)
        requests.append(Arrival(request, min(arrival.n_output, MAX_TOKENS - LONGER)))
    return World(catalogue, requests, n_instances, hardware)


LONG, SHORT, USUAL = ServiceLevel(300.0, 1.0), ServiceLevel(1.0, 0.05), ServiceLevel()
WORLDS = {
    "busy": world(["qwen2.5-7b"] * 12 + ["llama2-13b"] * 4, 0.15, 30.0, 2, [USUAL]),
    "classes": world(["llama3.1-8b"] * 10, 0.2, 30.0, 2, [LONG, SHORT, USUAL]),
    "giant": world(["qwen2.5-32b"] + ["llama3.2-3b"] * 8, 0.2, 30.0, 1, [USUAL]),
    "disk": world(["qwen2.5-7b"] * 10, 0.15, 30.0, 2, [USUAL], Hardware(host_cache_bytes=80 * GB)),
    "crowd": world(["llama3.1-8b"], 12.0, 10.0, 3, [USUAL]),
}


def _before_and_after(place: World, policy: str, at_s: float) -> tuple[list[Decision], list[Decision]]:
    """What is decided up to `at_s`, with the lengths as they are and with later ones."""
    lengths = {arrival.request.id: arrival.n_output for arrival in place.arrivals}
    decisions, records = place.decisions(policy, lengths)
    over = {record.request.id for record in records if record.end_s <= at_s}
    assert over, "nothing ended by then"
    longer = {r: n if r in over else n + LONGER for r, n in lengths.items()}
    assert longer != lengths, "everything had ended by then"
    others, _ = place.decisions(policy, longer)
    assert others != decisions, "the lengths made no difference at all"

    def early(log: list[Decision]) -> list[Decision]:
        return [decision for decision in log if decision[0] <= at_s]

    return early(decisions), early(others)


@pytest.mark.parametrize("at_s", [9.0, 21.0])
@pytest.mark.parametrize("name", WORLDS)
def test_the_default_policy_knows_no_length(name: str, at_s: float) -> None:
    decisions, others = _before_and_after(WORLDS[name], "slack", at_s)
    assert len(decisions) > 50
    assert decisions == others


@pytest.mark.parametrize("policy", ["aegaeon", "request-level", "dedicated"])
def test_no_baseline_knows_a_length(policy: str) -> None:
    decisions, others = _before_and_after(WORLDS["busy"], policy, 21.0)
    assert decisions == others


def test_the_oracle_does_and_is_found_out() -> None:
    decisions, others = _before_and_after(WORLDS["busy"], "oracle", 21.0)
    assert decisions != others
