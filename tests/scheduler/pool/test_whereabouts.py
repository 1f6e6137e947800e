"""Where requests are: the books are checked against the instances'."""

import pytest

from tests.scheduler.pool.worlds import MODELS, World, slow_device
from tokenmux.core.errors import InternalError
from tokenmux.core.event import Arrived
from tokenmux.core.request import RequestId
from tokenmux.scheduler.pool.whereabouts import Transit, Whereabouts
from tokenmux.testing import make_request

R, S = RequestId("r"), RequestId("s")


def transit(source: int, target: int | None) -> Transit:
    instance = World([slow_device(6_000)]).pool.instances[0]
    return Transit(source, instance, target, Arrived(0.0, make_request("r", MODELS[0])))


def test_a_request_may_come_where_it_was_asked_to_go_or_go_back_if_nobody_said_where() -> None:
    where = Whereabouts()
    where.on[R] = 0
    assert not any(map(where.may_come_to, range(4)))
    where.asked[R] = 1
    assert [where.may_come_to(index) for index in range(4)] == [False, True, False, False]
    assert where.leave(R) == 1
    where.between[R] = transit(0, 1)
    assert [where.may_come_to(index) for index in range(4)] == [False, True, False, False]
    where.between[S] = transit(3, None)
    assert [where.may_come_to(index) for index in range(4)] == [False, True, False, True]


def test_books_that_do_not_balance_are_found() -> None:
    where = Whereabouts()
    where.check_integrity({})
    where.on[R] = 1
    where.check_integrity({R: 1})
    for actual in ({}, {R: 0}, {R: 1, S: 1}):
        with pytest.raises(InternalError, match="not where it should be"):
            where.check_integrity(actual)
    where.asked[S] = 1
    with pytest.raises(InternalError, match="asked to leave"):
        where.check_integrity({R: 1})
    del where.asked[S]
    where.between[R] = transit(0, None)
    with pytest.raises(InternalError, match="not where it should be"):
        where.check_integrity({R: 1})
