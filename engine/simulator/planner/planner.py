"""Answers an operator's question before the money is spent: how many devices does this catalogue need, and what limits it?

For every policy the fewest instances are searched that keep the share of tokens on time. Of the default policy, one more and one less are then
looked at, and on one less what doubling each resource would give. A search stops a pool as soon as it is certain to miss the goal. A `PlanSearch` says what has to be simulated; who simulates, in how many processes, is the
caller's business, and the plan is the same. Energy and cost are estimates from data-sheet power and a rental price.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace

from tokenmux.core.plan import Channel
from tokenmux.core.span import Span
from tokenmux.scheduler.metrics.summary import Summary
from tokenmux.scheduler.metrics.timeline import Timeline
from tokenmux.simulator.hardware import gpu
from tokenmux.simulator.planner.search import SearchState, replay
from tokenmux.simulator.scenario import Hardware, Market, Outcome, simulate
from tokenmux.workload.trace import Arrival

OURS = "slack"
BASELINES = ("aegaeon", "request-level", "dedicated")

HOST_MEMORY = "host memory"

RELIEFS: dict[str, Callable[[Hardware], Hardware]] = {
    "compute": lambda h: replace(h, slower=h.slower / 2),
    "copies": lambda h: replace(h, copy_bytes_per_s=2 * h.copy_bytes_per_s),
    "device memory": lambda h: replace(h, usable=2 * h.usable),
    HOST_MEMORY: lambda h: replace(
        h, host_kv_bytes=2 * h.host_kv_bytes, host_cache_bytes=2 * h.host_cache_bytes
    ),
}
"""What could limit, each with hardware that has twice as much of it."""

NOTICEABLE = 0.2
"""A resource limits if doubling it makes up for this share of what is missing..."""

ALIKE = 0.9
"""...and for this share of what the best one makes up for."""

MODELS_PER_FIRST_GUESS = {OURS: 10, "aegaeon": 4, "request-level": 4}
"""A search begins with one instance for so many models, about what each policy reaches at 0.1 requests per second for each model. Pools that are
hopelessly small take longest to simulate, and say least."""

ONE_EACH = "one device per model"
NOTHING_ALONE = "no resource alone"
NOTHING = "nothing"
"""The smallest pool is enough."""


@dataclass(frozen=True, slots=True)
class World:
    """What is planned for."""

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
    """Whether every step, copy and request is noted down."""
    goal: float | None = None
    """Of a search: it ends, with nothing to show, as soon as this share of tokens on time is out of reach."""


@dataclass(frozen=True, slots=True)
class Point:
    """What came of one simulation."""

    policy: str
    n_instances: int
    summary: Summary
    compute_busy: float
    copy_in_busy: float
    copy_out_busy: float
    fetch_busy: float
    n_swaps: int
    n_discards: int
    host_was_short: bool = True
    """Whether more host memory could have changed anything."""
    spans: tuple[Span, ...] = ()


def simulate_job(world: World, job: Job) -> Point | None:
    """Simulate. None: the goal was out of reach."""
    hardware = RELIEFS[job.relief](world.hardware) if job.relief else world.hardware
    timeline = Timeline()
    note = timeline.add if job.traced else None
    outcome = simulate(
        world.market,
        world.arrivals,
        job.n_instances,
        job.policy,
        hardware,
        on_done=note,
        to_the_end=False,
        goal=job.goal,
    )
    if outcome.missed:
        return None
    if job.traced:
        for record in outcome.records:
            timeline.add_request(0, record)
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
        _host_was_short(world, hardware, outcome),
        tuple(timeline.spans),
    )


def _host_was_short(world: World, hardware: Hardware, outcome: Outcome) -> bool:
    weight_bytes = sum(facts.n_bytes for facts in world.market.facts.values())
    return weight_bytes > hardware.host_cache_bytes or any(
        instance.ledger.host_blocks.was_short for instance in outcome.simulator.instances
    )


class PlanSearch:
    """What is known so far, and what has to be simulated next."""

    def __init__(self, world: World, goal: float, policies: Sequence[str], with_spans: bool = True) -> None:
        """`with_spans`: the plan is to hold every step, copy and request of its answer."""
        self.world = world
        self.goal = goal
        self.policies = policies
        self.with_spans = with_spans
        self.known: dict[Job, Point | None] = {}
        """What came of each simulation; None: it was stopped, for it missed the goal."""
        self._highest = max(2, len({arrival.request.model for arrival in world.arrivals}))

    def needed(self) -> list[Job]:
        """What the plan cannot do without, as far as that can be told now; none: it is complete."""
        jobs: list[Job] = []
        for policy in self.policies:
            progress = self._progress(policy)
            if progress.needs is not None:
                jobs.append(self._look(policy, progress.needs))
            else:
                jobs += self._afterwards(policy, progress.answer)
        return [job for job in dict.fromkeys(jobs) if job not in self.known]

    def guesses(self) -> list[Job]:
        """What the searches will need next if what they wait for goes one way, or the other: for processes that would be idle."""
        jobs = []
        for policy in self.policies:
            needs = self._progress(policy).needs
            for outcome in (True, False) if needs is not None else ():
                following = self._progress(policy, {needs: outcome} if needs is not None else {})
                if following.needs is not None:
                    jobs.append(self._look(policy, following.needs))
        return [job for job in dict.fromkeys(jobs) if job not in self.known]

    def tell(self, job: Job, point: Point | None) -> None:
        """A simulation ended. One that was not stopped is as good as one that nobody would have stopped."""
        self.known[job] = point
        if job.goal is not None and point is not None:
            self.known[replace(job, goal=None)] = point

    def plan(self) -> "CapacityPlan":
        """The answer, once nothing is needed any more; what was only guessed leaves no trace in it."""
        fewest = {policy: self._progress(policy).answer for policy in self.policies}
        points: list[Point] = []
        relieved: dict[str, dict[str, float]] = {}
        spans: tuple[Span, ...] = ()
        for policy, answer in fewest.items():
            afterwards = self._afterwards(policy, answer)
            seen = {*self._progress(policy).seen, *(j.n_instances for j in afterwards if not j.relief)}
            points += [p for n in sorted(seen) if (p := self.known.get(Job(policy, n))) is not None]
            relieved[policy] = self._relieved(afterwards)
            spans = next((self._whole(j).spans for j in afterwards if j.traced), spans)
        world = self.world
        return CapacityPlan(
            hardware=world.hardware,
            n_models=len(world.market.facts),
            n_requests=len(world.arrivals),
            duration_s=world.duration_s,
            goal=self.goal,
            fewest=fewest,
            points=tuple(points),
            relieved=relieved,
            spans=spans,
        )

    def _progress(self, policy: str, supposed: dict[int, bool] | None = None) -> SearchState:
        known = {
            job.n_instances: point is not None and point.summary.tokens_on_time >= self.goal
            for job, point in self.known.items()
            if job.policy == policy and job.goal is not None
        }
        low = least_instances(policy)
        per_instance = MODELS_PER_FIRST_GUESS.get(policy, 1)
        first = max(low, self._highest // per_instance)
        return replay(known | (supposed or {}), low, self._highest, first)

    def _afterwards(self, policy: str, answer: int | None) -> list[Job]:
        """What a policy's part of the plan needs once its fewest instances are known."""
        if answer is None:
            shown = [self._highest]
        else:
            shown = [answer - 1, answer + 1] if policy == OURS else []
        low = least_instances(policy)
        jobs = [Job(policy, n) for n in shown if n >= low]
        short = self._highest if answer is None else answer - 1
        if policy == OURS and short >= low:
            point = self.known.get(Job(policy, short))
            spared = HOST_MEMORY if point is not None and not point.host_was_short else ""
            jobs += [Job(policy, short, relief) for relief in RELIEFS if relief != spared]
        if policy == OURS and answer is not None and self.with_spans:
            jobs.append(Job(policy, answer, traced=True))
        return jobs

    def _relieved(self, afterwards: Sequence[Job]) -> dict[str, float]:
        """What twice as much of each resource gives, in the order of `RELIEFS`; of host memory where there was enough: nothing."""
        jobs = {job.relief: job for job in afterwards if job.relief}
        if not jobs:
            return {}
        short = next(replace(job, relief="") for job in jobs.values())
        return {name: self._whole(jobs.get(name, short)).summary.tokens_on_time for name in RELIEFS}

    def _look(self, policy: str, n: int) -> Job:
        """One of a search."""
        return Job(policy, n, goal=self.goal)

    def _whole(self, job: Job) -> Point:
        """What came of a simulation that nobody would have stopped."""
        point = self.known[job]
        assert point is not None
        return point


def least_instances(policy: str) -> int:
    """The smallest pool that a policy can run."""
    return 2 if policy == "aegaeon" else 1


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """The answer. Counts are instances; `hardware.n_devices` devices are one instance."""

    hardware: Hardware
    n_models: int
    n_requests: int
    duration_s: float
    goal: float
    fewest: dict[str, int | None]
    points: tuple[Point, ...]
    relieved: dict[str, dict[str, float]]
    """By policy, the default one: tokens on time on one instance less, with twice as much of a resource."""
    spans: tuple[Span, ...]
    """Every step, copy and request of the default policy on its fewest instances, if they were asked for."""

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
        """The fewest instances with one less and one more, as far as they were simulated whole; of a search without an answer the largest pool."""
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
        """Why there have to be so many: of what (the one or the two) twice as much would bring one device less nearest to the goal.

        Empty for baselines, of which it is not asked.
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
        """The policy one instance short of enough, or on the largest pool that was tried."""
        around = self.around(policy)
        fewest = self.fewest.get(policy)
        return around[0] if around and (fewest is None or around[0].n_instances < fewest) else None

    def dollars_per_million_tokens(
        self, policy: str = OURS, dollars_per_hour: float | None = None
    ) -> float | None:
        """At so many dollars for an hour of one device; None: the round price of `tokenmux.simulator.hardware`."""
        point, devices = self.best(policy), self.devices(policy)
        if point is None or devices is None or not point.summary.n_tokens:
            return None
        price = gpu(self.hardware.gpu).dollars_per_hour if dollars_per_hour is None else dollars_per_hour
        return devices * self.duration_s / 3600 * price / point.summary.n_tokens * 1e6

    def watt_hours_per_million_tokens(self, policy: str = OURS) -> float | None:
        """Of the devices alone: idle power, and board power while they step."""
        point, devices = self.best(policy), self.devices(policy)
        if point is None or devices is None or not point.summary.n_tokens:
            return None
        kind = gpu(self.hardware.gpu)
        watts = kind.idle_watts + (kind.watts - kind.idle_watts) * point.compute_busy
        return devices * watts * self.duration_s / 3600 / point.summary.n_tokens * 1e6

    def as_dict(self, with_cost: bool = False, dollars_per_hour: float | None = None) -> dict[str, object]:
        """For JSON."""
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


ToldProgress = Callable[[PlanSearch, Collection[Job]], None]
"""Called during a search with what is known so far and the simulations that are running."""


def plan_here(planning: PlanSearch, told: ToldProgress = lambda planning, running: None) -> None:
    """One simulation after the other, in this process, until the plan is complete."""
    while jobs := planning.needed():
        told(planning, jobs[:1])
        planning.tell(jobs[0], simulate_job(planning.world, jobs[0]))
