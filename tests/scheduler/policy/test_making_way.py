"""A load under way makes way for a more urgent request: when, how often, and what it is worth."""

from collections import Counter
from functools import partial

import numpy as np
import pytest

from tests.conformance.test_one_brain import GB, HOST, ServedWorld, World, both, device
from tokenmux.core.effects import CopyEnded, Effects
from tokenmux.core.event import Arrived, ModelAdded
from tokenmux.core.facts import KvShape, ModelFacts, ModelId
from tokenmux.core.plan import Activate, Fetch, Operation
from tokenmux.core.request import Request, RequestId, ServiceLevel
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.core.started import StartedActivation, StartedFetch
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.policy.instance_policy import InstanceView
from tokenmux.scheduler.policy.slack import SlackPolicy
from tokenmux.simulator.simulator import Arrival, Simulator
from tokenmux.testing import make_model, make_request

SHAPE = KvShape(n_layers=28, n_kv_heads=8, head_dim=128, dtype_bytes=2, block_size=16)
PATIENT, HURRIED = ServiceLevel(60.0, 0.5), ServiceLevel(1.0, 0.1)
FACTS = device(72 * GB, 100 * GB)


model = partial(make_model, kv=SHAPE, max_context=4096)

BIG, SMALL = model("big", 50 * GB), model("small", 4 * GB)
"""Fetched in 6.25 s and copied in 3.1; fetched in 0.5 and copied in 0.25."""


def arrival(of: ModelFacts, at_s: float, level: ServiceLevel) -> Arrival:
    return Arrival(make_request(f"{of.id} at {at_s}", of, 100, 400, at_s, service=level), 20)


def decided(served: ServedWorld) -> list[tuple[float, object]]:
    return [(at_s, what) for _, at_s, what in served.log]


def n_superseded(served: ServedWorld) -> int:
    return served.node.pool.instances[0].metrics.n_superseded


@pytest.mark.parametrize(
    ("big_level", "came_s", "small_level", "makes_way"),
    [
        pytest.param(PATIENT, 20.5, HURRIED, Activate, id="it would be late behind it"),
        pytest.param(PATIENT, 20.5, ServiceLevel(5.0, 0.1), None, id="it has time"),
        pytest.param(PATIENT, 22.0, HURRIED, None, id="more than half is done"),
        pytest.param(ServiceLevel(10.0, 0.1), 20.5, HURRIED, None, id="who waits for it has none to give"),
    ],
)
def test_an_activation_makes_way(
    big_level: ServiceLevel, came_s: float, small_level: ServiceLevel, makes_way: type[Operation] | None
) -> None:
    """Both models are in host memory by then; the node and the simulator decide alike."""
    arrivals = [arrival(BIG, 20.0, big_level), arrival(SMALL, came_s, small_level)]
    served = both(World((FACTS,), [BIG, SMALL], arrivals))
    decisions = decided(served)
    assert n_superseded(served) == (makes_way is not None)
    if makes_way is not None:
        assert (came_s, makes_way(SMALL.id)) in decisions
        loads = [what for _, what in decisions if isinstance(what, Activate)]
        assert loads == [Activate(BIG.id), Activate(SMALL.id), Activate(BIG.id)]
    served.node.pool.check_integrity()


def test_a_fetch_that_nobody_waits_for_makes_way() -> None:
    """Fetched ahead, one after another, since the host cache has room."""
    others = [model(f"m{i}", 50 * GB) for i in range(3)]
    arrivals = [arrival(SMALL, 7.0, HURRIED)]
    served = both(World((FACTS,), [*others, SMALL], arrivals))
    assert (7.0, Fetch(SMALL.id)) in decided(served)
    assert n_superseded(served) == 1
    served.node.pool.check_integrity()


def mixed(seed: int, duration_s: float = 300.0) -> tuple[list[ModelFacts], list[Arrival]]:
    """Six small models for people, three large ones for work that can wait a minute."""
    catalogue = [model(f"small{i}", 4 * GB) for i in range(6)] + [model(f"big{i}", 50 * GB) for i in range(3)]
    rng = np.random.default_rng(seed)
    arrivals = []
    for kind, n, rate, level in (("small", 6, 0.8, HURRIED), ("big", 3, 0.12, PATIENT)):
        at_s = 0.0
        while (at_s := at_s + float(rng.exponential(1 / rate))) < duration_s:
            request = Request(
                RequestId(f"{kind} {len(arrivals)}"),
                ModelId(f"{kind}{rng.integers(n)}"),
                int(rng.integers(50, 800)),
                200,
                at_s,
                level,
            )
            arrivals.append(Arrival(request, int(rng.integers(20, 200))))
    return catalogue, sorted(arrivals, key=lambda made: made.request.arrival_s)


def served(seed: int, policy: SlackPolicy) -> tuple[Instance, dict[str, float]]:
    """The instance afterwards, and the share of requests on time of each kind of model."""
    catalogue, arrivals = mixed(seed)
    instance = Instance(FACTS, HostCache(400 * GB), policy, RooflineCost(FACTS, HOST))
    superseded: Counter[ModelId] = Counter()

    def note(_index: int, _at_s: float, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case CopyEnded(StartedActivation() | StartedFetch() as load, done):
                    if done.superseded:
                        superseded[load.model.id] += 1
                    elif isinstance(load, StartedActivation):
                        superseded[load.model.id] = 0
        assert max(superseded.values(), default=0) <= 1, "a model gives way once until it is loaded"

    simulator = Simulator([instance], RooflineCost(FACTS, HOST), on_effects=note)
    for facts in catalogue:
        simulator.apply(0, ModelAdded(0.0, facts))
    simulator.run(arrivals)
    instance.check_integrity()
    on_time = {}
    for kind in ("small", "big"):
        services = [c.service for name, c in instance.metrics.models.items() if name.startswith(kind)]
        on_time[kind] = sum(s.n_requests_on_time for s in services) / sum(s.n_requests for s in services)
    return instance, on_time


@pytest.mark.pure
@pytest.mark.parametrize("seed", [0, 1])
def test_people_gain_and_those_who_can_wait_lose_nothing(seed: int) -> None:
    class Patient(SlackPolicy):
        """The same, but every load is finished."""

        def makes_way(
            self, operation: Activate | Fetch, since_s: float, arrived: Arrived, view: InstanceView
        ) -> bool:
            return False

    without, before = served(seed, Patient())
    with_it, after = served(seed, SlackPolicy())
    assert without.metrics.n_superseded == 0
    assert with_it.metrics.n_superseded > 5
    assert after["small"] > before["small"] + 0.01
    assert after["big"] >= before["big"]


@pytest.mark.parametrize("seed", [2, 3])
def test_the_node_gives_way_as_the_simulator_does(seed: int) -> None:
    catalogue, arrivals = mixed(seed, duration_s=120.0)
    assert n_superseded(both(World((FACTS,), catalogue, arrivals)))
