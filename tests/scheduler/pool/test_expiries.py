"""Requests whose clients stop waiting end wherever they are, and the pool does not remember them."""

from dataclasses import replace
from math import inf

from tests.scheduler.pool.worlds import MODELS as WORLD_MODELS
from tests.scheduler.pool.worlds import World, slow_device
from tokenmux.core.event import Arrived, Paused
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.scheduler.pool.expiries import SPARE_ENTRIES, Expiries
from tokenmux.testing import make_request


def expiring(name: str, expires_s: float) -> Request:
    return replace(make_request(name, WORLD_MODELS[0]), expires_s=expires_s)


def test_the_first_to_expire_comes_first_and_one_that_has_ended_not_at_all() -> None:
    expiries = Expiries()
    for name, at_s in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("never", inf)):
        expiries.add(expiring(name, at_s))
    assert expiries.next_s == 1.0
    expiries.forget(RequestId("b"))
    expiries.forget(RequestId("never"))
    assert expiries.pop(0.9) == []
    assert expiries.pop(3.0) == ["a", "c"]
    assert expiries.next_s == inf


def test_what_has_ended_long_before_its_time_takes_no_room() -> None:
    expiries = Expiries()
    for number in range(10_000):
        expiries.add(expiring(f"r{number}", 86_400.0))
        expiries.forget(RequestId(f"r{number}"))
        assert len(expiries._heap) <= SPARE_ENTRIES + 1
    expiries.add(expiring("last", 5.0))
    assert expiries.pop(5.0) == ["last"]


def test_requests_that_cannot_run_expire_as_well() -> None:
    """One waits for a device that is being started, one is paused."""
    world = World([slow_device(20_000)])
    pool = world.pool
    pool.hold(0)
    for name, at_s in (("held", 2.0), ("paused", 3.0)):
        pool.submit(Arrived(0.0, expiring(name, at_s)))
    pool.apply_to_request(Paused(0.0, RequestId("paused")))
    world.at(2.0, pool.expire)
    world.at(3.0, pool.expire)
    world.finish()
    ends = [(record.request.id, record.reason, record.end_s) for record in world.simulator.records]
    assert ends == [("held", FinishReason.EXPIRED, 2.0), ("paused", FinishReason.EXPIRED, 3.0)]
    assert pool.next_expiry_s == inf
    counted = pool.instances[0].metrics.of(WORLD_MODELS[0].id).service
    assert (counted.n_requests, counted.n_requests_failed, counted.n_requests_on_time) == (2, 2, 0)


def test_tokens_that_a_request_brought_along_are_neither_due_nor_counted_again() -> None:
    world = World([slow_device(20_000)])
    request = replace(make_request("r", WORLD_MODELS[0], max_tokens=8), n_resumed=5)
    assert request.deadline_s(5) == request.service.ttft_s
    assert request.deadline_s(7) == request.service.ttft_s + 2 * request.service.tpot_s
    world.simulator._n_output[request.id] = 8
    world.pool.submit(Arrived(0.0, request, n_delivered=5))
    world.pool.settle()
    world.finish()
    (record,) = world.simulator.records
    assert (record.n_tokens, record.n_on_time, record.is_on_time) == (3, 3, True)
    assert world.pool.instances[0].metrics.of(WORLD_MODELS[0].id).service.n_tokens == 3
