"""Weights on their way that nobody waits for any more make way, at a chunk boundary, for a model that is
waited for."""

import pytest

from tests.scheduler.instance.body import Body
from tests.scheduler.instance.scenes import A, B, a_body, arrive
from tokenmux.core.effects import Supersede
from tokenmux.core.event import Cancelled, ModelWanted
from tokenmux.core.phases import Residency
from tokenmux.core.plan import Activate, Channel, Fetch, Plan
from tokenmux.core.request import RequestId

R, S = RequestId("r"), RequestId("s")


def fetched(*names: str) -> Body:
    body = a_body(A, B)
    for facts in (A, B):
        if facts.id in names:
            body.plan(Channel.FETCH, Plan(Fetch(facts.id)))
            body.complete(Channel.FETCH)
    return body


def loading() -> Body:
    """A is being copied for r; s waits for B, which the host cache has as well."""
    body = fetched("A", "B")
    arrive(body, "r", A)
    body.plan(Channel.COPY_IN, Plan(Activate(A.id)))
    arrive(body, "s", B)
    return body


def test_an_activation_whose_last_request_was_cancelled_makes_way() -> None:
    body = loading()
    assert body.take(Supersede) == []
    body.apply(Cancelled(1.0, R))
    assert body.take(Supersede) == [Supersede(body.flights[Channel.COPY_IN].id)]
    body.complete(Channel.COPY_IN, superseded=True)
    assert body.instance.models[A.id].residency is Residency.HOST
    assert body.ledger.weight_bytes == 0
    assert body.instance.metrics.n_superseded == 1
    assert body.instance.metrics.of(A.id).n_swaps == 0
    body.plan(Channel.COPY_IN, Plan(Activate(B.id)))
    body.complete(Channel.COPY_IN)
    assert body.instance.models[B.id].residency is Residency.RESIDENT


def test_it_is_said_once() -> None:
    body = loading()
    body.apply(Cancelled(1.0, R))
    assert len(body.take(Supersede)) == 1
    body.apply(Cancelled(2.0, RequestId("nobody")))
    assert body.take(Supersede) == []


def test_one_that_was_superseded_too_late_is_resident() -> None:
    body = loading()
    body.apply(Cancelled(1.0, R))
    body.complete(Channel.COPY_IN)
    assert body.instance.models[A.id].residency is Residency.RESIDENT
    assert body.instance.metrics.n_superseded == 0


def test_it_makes_way_for_a_request_that_comes_later() -> None:
    body = fetched("A", "B")
    arrive(body, "r", A)
    body.plan(Channel.COPY_IN, Plan(Activate(A.id)))
    body.apply(Cancelled(1.0, R))
    assert body.take(Supersede) == [], "nobody else needs the channel"
    arrive(body, "s", B)
    assert len(body.take(Supersede)) == 1


@pytest.mark.parametrize("wish", [{"wanted": True}, {"pinned": True}])
def test_what_an_operator_wants_goes_on(wish: dict[str, bool]) -> None:
    body = loading()
    body.apply(ModelWanted(0.5, A.id, **wish))
    body.apply(Cancelled(1.0, R))
    assert body.take(Supersede) == []


def test_what_nobody_ever_waited_for_goes_on() -> None:
    """The policy knows why it loads it ahead, and would do so again."""
    body = fetched("A", "B")
    body.plan(Channel.COPY_IN, Plan(Activate(A.id)))
    arrive(body, "s", B)
    assert body.take(Supersede) == []


def test_an_activation_makes_no_way_for_a_model_that_lies_on_disk() -> None:
    body = fetched("A")
    arrive(body, "r", A)
    body.plan(Channel.COPY_IN, Plan(Activate(A.id)))
    arrive(body, "s", B)
    body.apply(Cancelled(1.0, R))
    assert body.take(Supersede) == []


def test_a_fetch_makes_way_and_fails_nobody_who_came_meanwhile() -> None:
    body = fetched()
    arrive(body, "r", A)
    body.plan(Channel.FETCH, Plan(Fetch(A.id)))
    arrive(body, "s", B)
    body.apply(Cancelled(1.0, R))
    assert body.take(Supersede) == [Supersede(body.flights[Channel.FETCH].id)]
    late = arrive(body, "late", A)
    body.complete(Channel.FETCH, superseded=True)
    assert late in body.instance.requests
    assert body.instance.models[A.id].residency is Residency.DISK
    assert body.ledger.cache.used_bytes == 0
    for facts in (B, A):
        body.plan(Channel.FETCH, Plan(Fetch(facts.id)))
        body.complete(Channel.FETCH)
