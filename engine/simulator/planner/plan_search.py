"""Searches for the fewest instances that keep a share of tokens on time, for every policy.

For the default policy it also looks at one instance more and one less, and, on one less, at what doubling
each resource would give. A simulation stops as soon as it is certain to miss the goal. `PlanSearch` says what
has to be simulated; who simulates, and in how many processes, is the caller's business and does not change
the plan.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from tokenmux.core.facts import ModelId
from tokenmux.core.span import Span
from tokenmux.simulator.planner.capacity_plan import OURS, UNSHARED, CapacityPlan, Point
from tokenmux.simulator.planner.search import SearchState, replay
from tokenmux.simulator.planner.simulated_job import HOST_MEMORY, RELIEFS, Job, World, simulate_job
from tokenmux.workload.trace import Arrival

MODELS_PER_FIRST_GUESS: dict[str, float] = {
    OURS: 12,
    UNSHARED: 12,
    "aegaeon": 3.6,
    "request-level": 4.6,
}
"""First guess of a search: this many models per instance, a little more than each policy reaches at 0.1
requests per second and model. Start small: a pool that misses the goal is stopped early, one that keeps it is
simulated whole."""


class PlanSearch:
    """The search for a plan: what is known so far, and what has to be simulated next."""

    def __init__(self, world: World, goal: float, policies: Sequence[str], with_spans: bool = True) -> None:
        """With `with_spans`, the plan has every step, copy and request of its answer."""
        self.world = world
        self.goal = goal
        self.policies = policies
        self.with_spans = with_spans
        self.known: dict[Job, Point | None] = {}
        """The result of each simulation; None if it was stopped because it missed the goal."""
        self._highest = max(2, len({arrival.request.model for arrival in world.arrivals}))

    def needed(self) -> list[Job]:
        """The simulations that the plan needs, as far as can be told now. Empty if the plan is complete."""
        jobs: list[Job] = []
        for policy in self.policies:
            progress = self._progress(policy)
            if progress.needs is not None:
                jobs.append(self._look(policy, progress.needs))
            else:
                jobs += self._afterwards(policy, progress.answer)
        return [job for job in dict.fromkeys(jobs) if job not in self.known]

    def guesses(self) -> list[Job]:
        """What the searches may need next, for either result of what they wait for. Keeps idle processes
        busy."""
        jobs = []
        for policy in self.policies:
            needs = self._progress(policy).needs
            for outcome in (True, False) if needs is not None else ():
                following = self._progress(policy, {needs: outcome} if needs is not None else {})
                if following.needs is not None:
                    jobs.append(self._look(policy, following.needs))
        return [job for job in dict.fromkeys(jobs) if job not in self.known]

    def tell(self, job: Job, point: Point | None) -> None:
        """Enter the result of a simulation. One with a goal that ran to the end also counts as one
        without."""
        self.known[job] = point
        if job.goal is not None and point is not None:
            self.known[replace(job, goal=None)] = point

    def plan(self) -> "CapacityPlan":
        """The plan, once nothing more is needed. It does not depend on which guesses were simulated."""
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
        low = self._least(policy)
        first = max(low, int(self._highest / MODELS_PER_FIRST_GUESS.get(policy, 1)))
        return replay(known | (supposed or {}), low, self._highest, first)

    def _least(self, policy: str) -> int:
        """The smallest pool worth simulating."""
        if policy == "dedicated":
            return least_dedicated(self.world.arrivals, self.goal)
        return least_instances(policy)

    def _afterwards(self, policy: str, answer: int | None) -> list[Job]:
        """What a policy's part of the plan needs once its fewest instances (`answer`) are known."""
        if answer is None:
            shown = [self._highest]
        else:
            shown = [answer - 1, answer + 1] if policy == OURS else []
        low = self._least(policy)
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
        """Tokens on time with twice as much of each resource, in the order of `RELIEFS`. Host memory that was
        never short is not doubled: the result is that of the pool as it is."""
        jobs = {job.relief: job for job in afterwards if job.relief}
        if not jobs:
            return {}
        short = next(replace(job, relief="") for job in jobs.values())
        return {name: self._whole(jobs.get(name, short)).summary.tokens_on_time for name in RELIEFS}

    def _look(self, policy: str, n: int) -> Job:
        """A simulation that only has to say whether the goal is met."""
        return Job(policy, n, goal=self.goal)

    def _whole(self, job: Job) -> Point:
        """The result of a simulation without a goal."""
        point = self.known[job]
        assert point is not None
        return point


def least_instances(policy: str) -> int:
    """The smallest pool that a policy can run."""
    return 2 if policy == "aegaeon" else 1


def least_dedicated(arrivals: Sequence[Arrival], goal: float) -> int:
    """The smallest pool in which `dedicated` may keep the goal. The models that come first have its instances
    for ever, and all tokens of the others are lost."""
    n_tokens: dict[ModelId, int] = {}
    for arrival in arrivals:
        model = arrival.request.model
        n_tokens[model] = n_tokens.get(model, 0) + arrival.n_output
    served = total = sum(n_tokens.values())
    least = len(n_tokens)
    for lost in reversed(n_tokens.values()):
        served -= lost
        if least == 1 or served / total < goal:
            break
        least -= 1
    return least


ToldProgress = Callable[[PlanSearch, Collection[Job]], None]
"""Called during a search with the search and the simulations that are running."""


def plan_here(planning: PlanSearch, told: ToldProgress = lambda planning, running: None) -> None:
    """Simulate one job after another in this process until the plan is complete."""
    while jobs := planning.needed():
        told(planning, jobs[:1])
        planning.tell(jobs[0], simulate_job(planning.world, jobs[0]))
