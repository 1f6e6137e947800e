"""A device of a pool is lost in mid-operation: another takes its place, and its neighbours notice nothing."""

import pytest

from tokenmux.core.effects import Effect, Effects
from tokenmux.core.event import Cancelled
from tokenmux.core.request import RequestId
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.core.started import StartedActivation, StartedFetch, StartedStep
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.policy.pool.placement import LeastLoaded
from tokenmux.scheduler.policy.slack import SlackPolicy
from tokenmux.simulator.simulator import Simulator
from tokenmux.testing import make_arrival, make_device, make_host, make_model

DEVICE, HOST = make_device(arena_bytes=4_000), make_host(cache_bytes=2_500)
MODELS = [make_model(name, 1_000) for name in "abcd"]
ARRIVALS = [
    make_arrival(f"r{i}", MODELS[i % len(MODELS)], n_output=20, arrival_s=0.07 * i) for i in range(24)
]


class Pool:
    """Two instances on one host whose cache holds two of four models; `log` has all effects by instance and
    time."""

    def __init__(self) -> None:
        self.cache = HostCache(HOST.cache_bytes)
        self.log: list[tuple[float, int, Effect]] = []
        self.policy = LeastLoaded()
        self.simulator = Simulator(
            [self.instance(), self.instance()],
            RooflineCost(DEVICE, HOST),
            self.policy,
            {model.id: model for model in MODELS},
            self.note,
        )

    def instance(self) -> Instance:
        return Instance(DEVICE, self.cache, SlackPolicy(), RooflineCost(DEVICE, HOST))

    def note(self, index: int, at_s: float, effects: Effects) -> None:
        self.log += [(at_s, index, effect) for effect in effects]

    def lose(self, index: int) -> None:
        self.simulator.replace(index, self.instance())

    def finish(self) -> dict[RequestId, int]:
        """Tokens of every request, once all are over."""
        self.simulator.run(ARRIVALS)
        for instance in self.simulator.instances:
            instance.check_integrity()
        assert not self.cache.held
        assert not self.cache.fetching
        assert self.policy.n_remembered == 0
        assert len(self.simulator.records) == len(ARRIVALS), "one ended twice, or never"
        return {record.request.id: record.n_tokens for record in self.simulator.records}


@pytest.mark.parametrize("kind", [StartedFetch, StartedActivation, StartedStep])
@pytest.mark.parametrize("index", [0, 1])
def test_every_request_is_served_in_full_whatever_was_in_flight(kind: type, index: int) -> None:
    quiet = Pool()
    whole = quiet.finish()
    assert whole == {arrival.request.id: arrival.n_output for arrival in ARRIVALS}
    moments = [at_s for at_s, of, what in quiet.log if of == index and type(what) is kind]
    assert len(moments) >= 2
    for began_s in moments[:: max(1, len(moments) // 5)]:
        pool = Pool()
        pool.simulator.clock.call_at(began_s + 0.002, lambda pool=pool: pool.lose(index))
        assert pool.finish() == whole


def test_one_that_was_cancelled_before_does_not_come_back() -> None:
    pool = Pool()
    gone = RequestId("r3")

    def cancel_and_lose() -> None:
        """In the same moment, so that a step in flight still holds the request."""
        index = next(i for i, instance in enumerate(pool.simulator.instances) if gone in instance.requests)
        pool.simulator.apply(index, Cancelled(pool.simulator.now_s, gone))
        assert gone in pool.simulator.instances[index].requests, "nothing held it: this shows nothing"
        pool.lose(index)

    undisturbed = Pool()
    undisturbed.finish()
    steps = [(at_s, what.operation) for at_s, _, what in undisturbed.log if isinstance(what, StartedStep)]
    at_s = next(at_s for at_s, step in steps if gone in {chunk.request for chunk in step.chunks})
    pool.simulator.clock.call_at(at_s + 0.0005, cancel_and_lose)
    assert pool.finish()[gone] < 20
