"""One simulation of a plan: a policy on a number of instances, perhaps with twice as much of one resource."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tokenmux.core.plan import Channel
from tokenmux.scheduler.metrics.timeline import Timeline
from tokenmux.simulator.planner.capacity_plan import OURS, UNSHARED, Point
from tokenmux.simulator.scenario import Hardware, Market, Outcome, simulate
from tokenmux.workload.trace import Arrival, without_prefix

HOST_MEMORY = "host memory"

RELIEFS: dict[str, Callable[[Hardware], Hardware]] = {
    "compute": lambda h: replace(h, slower=h.slower / 2),
    "copies": lambda h: replace(h, copy_bytes_per_s=2 * h.copy_bytes_per_s),
    "device memory": lambda h: replace(h, usable=2 * h.usable),
    HOST_MEMORY: lambda h: replace(
        h, host_kv_bytes=2 * h.host_kv_bytes, host_cache_bytes=2 * h.host_cache_bytes
    ),
}
"""The resources that could limit a pool, each with hardware that has twice as much of it."""


@dataclass(frozen=True, slots=True)
class World:
    """What is planned for: models, their requests, and the hardware to serve them."""

    market: Market
    arrivals: Sequence[Arrival]
    hardware: Hardware

    @property
    def duration_s(self) -> float:
        return self.arrivals[-1].request.arrival_s if self.arrivals else 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """One simulation: a policy on a number of instances, perhaps with twice as much of a resource."""

    policy: str
    n_instances: int
    relief: str = ""
    traced: bool = False
    """Record every step, copy and request."""
    goal: float | None = None
    """Stop, without a result, as soon as this share of tokens on time is out of reach."""


def simulate_job(world: World, job: Job) -> Point | None:
    """Run one simulation. None if its goal was out of reach."""
    policy, arrivals = job.policy, world.arrivals
    if policy == UNSHARED:
        policy, arrivals = OURS, [without_prefix(arrival) for arrival in arrivals]
    hardware = RELIEFS[job.relief](world.hardware) if job.relief else world.hardware
    timeline = Timeline()
    outcome = simulate(
        world.market,
        arrivals,
        job.n_instances,
        policy,
        hardware,
        on_effects=(lambda index, _, effects: timeline.add(index, effects)) if job.traced else None,
        to_the_end=False,
        goal=job.goal,
    )
    if outcome.missed:
        return None
    return Point(
        job.policy,
        job.n_instances,
        outcome.summary(),
        outcome.busy(Channel.COMPUTE),
        outcome.busy(Channel.COPY_IN),
        outcome.busy(Channel.COPY_OUT),
        outcome.busy(Channel.FETCH),
        outcome.n_swaps,
        sum(instance.metrics.n_discards for instance in outcome.simulator.instances),
        outcome.prefix_hit_share,
        _host_was_short(world, hardware, outcome),
        tuple(timeline.spans),
    )


def _host_was_short(world: World, hardware: Hardware, outcome: Outcome) -> bool:
    weight_bytes = sum(facts.n_bytes for facts in world.market.facts.values())
    return weight_bytes > hardware.host_cache_bytes or any(
        instance.ledger.host_blocks.was_short for instance in outcome.simulator.instances
    )
