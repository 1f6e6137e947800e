"""The answer to a capacity question: the fewest devices by policy, what limits them, what they cost.

Energy and cost are estimates, from the power in a maker's data sheet and a rental price.
"""

from dataclasses import asdict, dataclass

from tokenmux.core.span import Span
from tokenmux.scheduler.metrics.summary import Summary
from tokenmux.simulator.hardware import gpu
from tokenmux.simulator.scenario import Hardware

OURS = "slack"
UNSHARED = "unshared"
"""The default policy without a prefix cache, beside a plan with one."""

BASELINES = ("aegaeon", "request-level", "dedicated")

NOTICEABLE = 0.2
"""A resource limits the pool if doubling it closes at least this share of the gap to the goal."""

ALIKE = 0.9
"""A resource is named beside the most limiting one if doubling it gains at least this share as much."""

ONE_EACH = "one device per model"
NOTHING_ALONE = "no resource alone"
NOTHING = "nothing"
"""The smallest pool is enough."""


@dataclass(frozen=True, slots=True)
class Point:
    """The result of one simulation: a policy on a number of instances."""

    policy: str
    n_instances: int
    summary: Summary
    compute_busy: float
    copy_in_busy: float
    copy_out_busy: float
    fetch_busy: float
    n_swaps: int
    n_discards: int
    prefix_hit_share: float = 0.0
    """Share of the tokens of all prompts whose KV other requests had computed."""
    host_was_short: bool = True
    """False if more host memory could not have changed anything."""
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """How many instances each policy needs. One instance is `hardware.n_devices` devices."""

    hardware: Hardware
    n_models: int
    n_requests: int
    duration_s: float
    goal: float
    fewest: dict[str, int | None]
    points: tuple[Point, ...]
    relieved: dict[str, dict[str, float]]
    """Share of tokens on time on one instance less than needed, with twice as much of one resource: by
    policy (the default one only), then by resource."""
    spans: tuple[Span, ...]
    """Every step, copy and request of the default policy on its fewest instances; empty unless asked for."""

    @property
    def shares_prefixes(self) -> bool:
        """True if the pool has a prefix cache."""
        return UNSHARED in self.fewest

    @property
    def answer(self) -> Point | None:
        """The default policy on the fewest instances."""
        return self.best(OURS)

    def best(self, policy: str) -> Point | None:
        """A policy on its fewest instances."""
        return self.point(policy, self.fewest.get(policy))

    def point(self, policy: str, n_instances: int | None) -> Point | None:
        return next((p for p in self.points if (p.policy, p.n_instances) == (policy, n_instances)), None)

    def around(self, policy: str) -> list[Point]:
        """The points at the fewest instances, one less and one more, if they were simulated to the end. If no
        pool was enough: the largest one tried."""
        own = [p for p in self.points if p.policy == policy]
        fewest = self.fewest.get(policy)
        return own[-1:] if fewest is None else [p for p in own if abs(p.n_instances - fewest) <= 1]

    def devices(self, policy: str) -> int | None:
        n = self.fewest.get(policy)
        return None if n is None else n * self.hardware.n_devices

    def saved_share(self, policy: str) -> float | None:
        """The share of devices saved against another policy."""
        ours, theirs = self.devices(OURS), self.devices(policy)
        return None if ours is None or not theirs else 1 - ours / theirs

    def limit(self, policy: str) -> str:
        """What keeps one device less from being enough: the one or two resources whose doubling would help
        most.

        Empty for baselines, for which nothing is doubled.
        """
        if policy == "dedicated":
            return ONE_EACH
        if policy != OURS:
            return ""
        relieved = self.relieved.get(policy, {})
        short = self.points_short(policy)
        if short is None or not relieved:
            return NOTHING
        had = short.summary.tokens_on_time
        gains = {name: share - had for name, share in relieved.items()}
        most = max(gains.values())
        if most < NOTICEABLE * (self.goal - had):
            return NOTHING_ALONE
        return ", ".join([name for name, gain in gains.items() if gain >= ALIKE * most][:2])

    def points_short(self, policy: str) -> Point | None:
        """The policy on one instance less than needed, or on the largest pool tried if none was enough."""
        around = self.around(policy)
        fewest = self.fewest.get(policy)
        return around[0] if around and (fewest is None or around[0].n_instances < fewest) else None

    def dollars_per_million_tokens(
        self, policy: str = OURS, dollars_per_hour: float | None = None
    ) -> float | None:
        """`dollars_per_hour` is the price of one device; None: the round price in
        `tokenmux.simulator.hardware`."""
        point, devices = self.best(policy), self.devices(policy)
        if point is None or devices is None or not point.summary.n_tokens:
            return None
        price = gpu(self.hardware.gpu).dollars_per_hour if dollars_per_hour is None else dollars_per_hour
        return devices * self.duration_s / 3600 * price / point.summary.n_tokens * 1e6

    def watt_hours_per_million_tokens(self, policy: str = OURS) -> float | None:
        """Energy of the devices alone: idle power, and board power while they compute."""
        point, devices = self.best(policy), self.devices(policy)
        if point is None or devices is None or not point.summary.n_tokens:
            return None
        kind = gpu(self.hardware.gpu)
        watts = kind.idle_watts + (kind.watts - kind.idle_watts) * point.compute_busy
        return devices * watts * self.duration_s / 3600 / point.summary.n_tokens * 1e6

    def as_dict(self, with_cost: bool = False, dollars_per_hour: float | None = None) -> dict[str, object]:
        """The plan as a JSON document."""
        policies = list(self.fewest)
        cost = {
            "dollars_per_million_tokens": {
                p: self.dollars_per_million_tokens(p, dollars_per_hour) for p in policies
            },
            "watt_hours_per_million_tokens": {p: self.watt_hours_per_million_tokens(p) for p in policies},
        }
        return {
            "hardware": asdict(self.hardware),
            "models": self.n_models,
            "requests": self.n_requests,
            "duration_s": self.duration_s,
            "goal": self.goal,
            "devices": {policy: self.devices(policy) for policy in policies},
            "saved_share": {p: self.saved_share(p) for p in policies if p != OURS},
            "limit": {policy: self.limit(policy) for policy in policies},
            "one_less_with_twice": self.relieved,
            **(cost if with_cost else {}),
            "points": [_plain(point, self.hardware.n_devices) for point in self.points],
        }


def _plain(point: Point, n_devices: int) -> dict[str, object]:
    document = asdict(point)
    del document["spans"], document["host_was_short"]
    return {"devices": n_devices * point.n_instances, **document}
