"""A request that leaves with its KV is served until the host has it."""

from tests.scheduler.instance.body import Body
from tests.scheduler.instance.scenes import (
    NEXT,
    SLAB,
    A,
    R,
    S,
    a_body,
    arrive,
    load,
    paged_out,
    running,
    step,
)
from tokenmux.core.effects import RequestLeft
from tokenmux.core.event import Cancelled, Paused, Withdrawn
from tokenmux.core.plan import Channel, Chunk, PageIn, PageOut, Plan, Step
from tokenmux.core.started import StartedPageOut


def leave(body: Body) -> None:
    body.apply(Withdrawn(body.now_s, R, with_kv=True))


def decide(body: Body) -> None:
    body.plan(Channel.FETCH, Plan())


def left(body: Body) -> list[tuple[int, int]]:
    """Tokens and KV that r took along, each time it left."""
    arrivals = [effect.arrival for effect in body.take(RequestLeft)]
    return [(arrival.n_delivered, arrival.n_kept) for arrival in arrivals if arrival.request.id == R]


def test_it_is_paged_out_and_leaves() -> None:
    body = running()
    leave(body)
    assert left(body) == []
    decide(body)
    paging = body.flights[Channel.COPY_OUT]
    assert isinstance(paging, StartedPageOut)
    assert paging.operation == PageOut((R,))
    body.complete(Channel.COPY_OUT)
    assert left(body) == [(1, 12)]
    assert body.ledger.host_kv.parked[R].n_tokens == 12
    assert body.instance.requests.keys() == {S}


def test_it_is_served_meanwhile_and_leaves_when_its_step_ends() -> None:
    body = running()
    leave(body)
    body.plan(Channel.COMPUTE, Plan(Step(A.id, (NEXT,), repeat=4)))
    body.complete(Channel.COPY_OUT)
    assert left(body) == []
    assert body.instance.requests[R].to_end is not None
    body.complete(Channel.COMPUTE)
    assert left(body) == [(5, 12)]


def test_steps_that_end_during_the_copy_do_not_wait_for_it() -> None:
    body = running()
    leave(body)
    step(body, NEXT)
    step(body, Chunk(R, 13, 1))
    body.complete(Channel.COPY_OUT)
    assert left(body) == [(3, 12)], "the tokens since then are rebuilt"


def test_it_is_served_also_when_another_takes_the_rest_of_the_host() -> None:
    body = running()
    leave(body)
    decide(body)
    size = body.ledger.kv[R].shape.block_bytes
    taken = body.ledger.host_blocks.allocate(size, body.ledger.host_blocks.free_blocks(size))
    assert taken is not None
    body.instance.apply(Paused(body.now_s, S))
    assert body.instance.requests[R].to_end is None
    body.ledger.host_blocks.free(taken)


def test_kv_comes_back_as_it_was() -> None:
    body = running()
    leave(body)
    step(body, NEXT)
    body.complete(Channel.COPY_OUT)
    (arrival,) = [effect.arrival for effect in body.take(RequestLeft)]
    body.apply(arrival)
    assert body.instance.requests[R].n_computed == 12
    body.plan(Channel.COPY_IN, Plan(PageIn((R,))))
    body.complete(Channel.COPY_IN)
    step(body, Chunk(R, 12, 2))
    assert body.instance.requests[R].n_drawn == 3


def test_one_without_kv_or_with_all_of_it_on_the_host_leaves_at_once() -> None:
    body = paged_out()
    leave(body)
    assert left(body) == [(1, 12)]
    body = a_body(A)
    arrive(body, "r")
    leave(body)
    assert left(body) == [(0, 0)]


def test_without_room_on_the_host_it_leaves_at_once_and_is_rebuilt() -> None:
    body = a_body(A, host_kv_bytes=0)
    arrive(body, "r")
    load(body)
    step(body, Chunk(R, 0, 8))
    leave(body)
    assert left(body) == [(0, 0)]


def test_one_that_waits_for_room_that_another_takes_leaves() -> None:
    """On a shared host the room may be gone before the channel is free."""
    body = running()
    decide(body)
    body.plan(Channel.COPY_OUT, Plan())
    leave(body)
    table = body.ledger.kv[R]
    taken = body.ledger.host_blocks.allocate(table.shape.block_bytes, SLAB // table.shape.block_bytes - 1)
    assert taken is not None
    decide(body)
    assert left(body) == [(1, 0)]
    body.ledger.host_blocks.free(taken)


def test_it_waits_for_what_is_being_moved() -> None:
    body = running()
    body.ledger.arena.frozen = True
    leave(body)
    decide(body)
    assert left(body) == []
    assert Channel.COPY_OUT not in body.flights
    body.ledger.arena.frozen = False
    decide(body)
    assert Channel.COPY_OUT in body.flights


def test_a_copy_that_fails_does_not_keep_it() -> None:
    body = running()
    leave(body)
    decide(body)
    body.complete(Channel.COPY_OUT, error="broken")
    assert left(body) == [(1, 0)]


def test_one_that_is_paged_in_leaves_afterwards() -> None:
    body = paged_out()
    body.plan(Channel.COPY_IN, Plan(PageIn((R,))))
    leave(body)
    assert left(body) == []
    body.complete(Channel.COPY_IN)
    assert left(body) == [(1, 12)]


def test_a_cancel_ends_it_and_a_pause_goes_along() -> None:
    body = running()
    leave(body)
    decide(body)
    body.apply(Cancelled(body.now_s, R))
    body.complete(Channel.COPY_OUT)
    assert left(body) == []
    assert R in body.ended
    body = running()
    leave(body)
    body.apply(Paused(body.now_s, R))
    decide(body)
    body.complete(Channel.COPY_OUT)
    (arrival,) = [effect.arrival for effect in body.take(RequestLeft)]
    assert arrival.is_paused


def test_asked_twice_it_leaves_once_and_asked_in_haste_at_once() -> None:
    body = running()
    leave(body)
    leave(body)
    body.apply(Withdrawn(body.now_s, R))
    assert left(body) == [(1, 0)]
    leave(body)
    assert left(body) == []
