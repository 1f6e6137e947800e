"""Answers an operator's question before the money is spent: how many devices does this catalogue need, and what limits it?

For every policy the fewest instances are searched that keep the share of tokens on time; the default policy's answer is then looked at one device
less and one more. Energy and cost are estimates from data-sheet power and a rental price.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from tokenmux.engine.core.plan import Channel
from tokenmux.engine.instance.summary import Summary
from tokenmux.engine.instance.timeline import Timeline
from tokenmux.engine.sim.hardware import gpu
from tokenmux.engine.sim.scenario import Hardware, Market, Outcome, simulate
from tokenmux.engine.sim.search import fewest
from tokenmux.engine.workload.trace import Arrival

SATURATED = 0.85
"""A channel this busy over the whole trace limits: bursts find it taken."""

BASELINES = ("aegaeon", "request-level", "dedicated")


@dataclass(frozen=True, slots=True)
class Point:
    """One simulation: a policy on a number of instances."""

    policy: str
    n_instances: int
    summary: Summary
    compute_busy: float
    copy_in_busy: float
    fetch_busy: float
    n_swaps: int
    n_discards: int

    @property
    def limit(self) -> str:
        """What is scarcest here."""
        if self.n_discards:
            return "host memory for KV"
        shares = {
            "compute": self.compute_busy,
            "copies": self.copy_in_busy,
            "disk (host cache)": self.fetch_busy,
        }
        name = max(shares, key=shares.__getitem__)
        return (
            name if shares[name] >= SATURATED else "bursts and device memory: no channel is busy on average"
        )


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """The answer. Counts are instances; `n_devices` of one instance each."""

    hardware: Hardware
    n_models: int
    n_requests: int
    duration_s: float
    goal: float
    fewest: dict[str, int | None]
    points: tuple[Point, ...]
    holdings: tuple[tuple[int, str, float, float], ...]

    @property
    def answer(self) -> Point | None:
        """The default policy on the fewest instances."""
        return self.point("slack", self.fewest.get("slack"))

    def point(self, policy: str, n_instances: int | None) -> Point | None:
        return next((p for p in self.points if (p.policy, p.n_instances) == (policy, n_instances)), None)

    def devices(self, policy: str) -> int | None:
        n = self.fewest.get(policy)
        return None if n is None else n * self.hardware.n_devices

    def saved_share(self, policy: str) -> float | None:
        """The share of devices saved against another policy."""
        ours, theirs = self.devices("slack"), self.devices(policy)
        return None if ours is None or not theirs else 1 - ours / theirs

    def dollars_per_million_tokens(self) -> float | None:
        ours, answer = self.devices("slack"), self.answer
        if ours is None or answer is None or not answer.summary.n_tokens:
            return None
        hours = ours * self.duration_s / 3600
        return hours * gpu(self.hardware.gpu).dollars_per_hour / answer.summary.n_tokens * 1e6

    def watt_hours_per_million_tokens(self) -> float | None:
        ours, answer = self.devices("slack"), self.answer
        if ours is None or answer is None or not answer.summary.n_tokens:
            return None
        kind = gpu(self.hardware.gpu)
        watts = kind.idle_watts + (kind.watts - kind.idle_watts) * answer.compute_busy
        return ours * watts * self.duration_s / 3600 / answer.summary.n_tokens * 1e6

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "hardware": asdict(self.hardware),
            "models": self.n_models,
            "requests": self.n_requests,
            "duration_s": self.duration_s,
            "goal": self.goal,
            "devices": {policy: self.devices(policy) for policy in self.fewest},
            "saved_share": {p: self.saved_share(p) for p in self.fewest if p != "slack"},
            "limit": self.answer.limit if self.answer else None,
            "dollars_per_million_tokens": self.dollars_per_million_tokens(),
            "watt_hours_per_million_tokens": self.watt_hours_per_million_tokens(),
            "points": [{**asdict(p), "summary": p.summary.as_dict(), "limit": p.limit} for p in self.points],
        }


def plan_capacity(
    market: Market,
    arrivals: Sequence[Arrival],
    hardware: Hardware,
    goal: float = 0.99,
    policies: Sequence[str] = ("slack", *BASELINES),
    most_instances: int | None = None,
    on_progress: Callable[[str, int], None] = lambda policy, n: None,
) -> CapacityPlan:
    """Search every policy's fewest instances. `on_progress` is told before each simulation."""
    points: dict[tuple[str, int], Point] = {}
    highest = most_instances or max(2, len({a.request.model for a in arrivals}))
    least: dict[str, int | None] = {}

    def look(policy: str, n: int) -> Point:
        if (policy, n) not in points:
            on_progress(policy, n)
            points[policy, n] = _point(policy, n, simulate(market, arrivals, n, policy, hardware))
        return points[policy, n]

    for policy in policies:
        low = 2 if policy == "aegaeon" else 1

        def is_enough(n: int, policy: str = policy) -> bool:
            return look(policy, n).summary.tokens_on_time >= goal

        least[policy] = fewest(is_enough, low, highest)
    holdings: tuple[tuple[int, str, float, float], ...] = ()
    ours = least.get("slack")
    if ours is not None:
        for neighbour in {max(1, ours - 1), ours + 1}:
            look("slack", neighbour)
        timeline = Timeline()
        simulate(market, arrivals, ours, "slack", hardware, on_done=timeline.add)
        holdings = tuple(timeline.holdings())
    return CapacityPlan(
        hardware,
        len(market.facts),
        len(arrivals),
        arrivals[-1].request.arrival_s if arrivals else 0.0,
        goal,
        least,
        tuple(points[key] for key in sorted(points)),
        holdings,
    )


def _point(policy: str, n: int, outcome: Outcome) -> Point:
    return Point(
        policy,
        n,
        outcome.summary(),
        outcome.busy(Channel.COMPUTE),
        outcome.busy(Channel.COPY_IN),
        outcome.busy(Channel.FETCH),
        outcome.n_swaps,
        sum(instance.metrics.n_discards for instance in outcome.simulator.instances),
    )
