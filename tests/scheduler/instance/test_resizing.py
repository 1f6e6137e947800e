"""Another size for the arena: what is refused, what leaves in which order, and what goes on afterwards."""

import pytest

from tests.scheduler.instance.body import Body
from tests.scheduler.instance.scenes import (
    NEXT,
    SLAB,
    A,
    B,
    C,
    R,
    S,
    a_body,
    arrive,
    load,
    paged_out,
    running,
    step,
)
from tokenmux.core.effects import INTERRUPT, Interrupt, ResizeReady, decisions
from tokenmux.core.errors import DoesNotFit, IntegrityError, InUse, InvalidRequest
from tokenmux.core.event import ModelWanted, ResizeAsked, Resized
from tokenmux.core.plan import (
    IDLE,
    Activate,
    Channel,
    Chunk,
    Compact,
    Discard,
    Drop,
    Evict,
    PageIn,
    PageOut,
    Plan,
    Step,
)
from tokenmux.scheduler.policy import drain


def drained(body: Body) -> list[object]:
    """Everything that leaves, until the arena has been replaced."""
    body.effects.clear()
    for _ in range(20):
        if body.drain():
            return list(decisions(tuple(body.effects)))
        for channel in list(body.flights):
            body.complete(channel)
    raise AssertionError("the arena is never empty")


def ask(body: Body, arena_bytes: int) -> None:
    body.instance.check_resizable(arena_bytes)
    body.apply(ResizeAsked(body.now_s, arena_bytes))


def test_everything_leaves_and_the_requests_go_on() -> None:
    body = running()
    ask(body, 768 + 4 * SLAB)
    before = body.instance.requests[R]
    deadline_s = before.deadline_s
    assert drained(body) == [Evict(A.id), PageOut((R,)), Drop(R)]
    assert body.ledger.arena.capacity == 768 + 4 * SLAB
    assert body.instance.device.arena_bytes == 768 + 4 * SLAB
    assert not body.drain(), "it is told once"
    assert body.instance.requests[R] is before
    assert (before.deadline_s, before.n_tokens, before.kv.n_computed) == (deadline_s, 13, 12)
    for operation in (Activate(A.id), PageIn((R,))):
        body.plan(Channel.COPY_IN, Plan(operation))
        body.complete(Channel.COPY_IN)
    step(body, NEXT)
    assert before.n_tokens == 14


def test_a_body_is_told_once_that_the_arena_is_empty() -> None:
    """It may take its time to replace it, and ask again meanwhile."""
    body = a_body(A)
    ask(body, 4096)
    assert body.instance.decide(0.0) == (ResizeReady(4096),)
    assert body.instance.decide(0.0) == ()


def test_kv_without_room_on_the_host_is_discarded_and_counted() -> None:
    body = a_body(A, host_kv_bytes=0)
    arrive(body, "r")
    load(body)
    step(body, Chunk(R, 0, 8))
    ask(body, 768 + 2 * SLAB)
    assert drained(body) == [Evict(A.id), Discard(R)]
    assert body.instance.metrics.n_discards == 1


def test_what_the_host_has_is_only_dropped() -> None:
    body = paged_out()
    ask(body, 768 + 2 * SLAB)
    assert drained(body) == [Evict(A.id)]
    assert body.instance.requests[R].kv.n_clean == 12


def test_what_is_in_flight_ends_first_and_a_burst_early() -> None:
    body = running()
    body.plan(Channel.COMPUTE, Plan(Step(A.id, (NEXT,), repeat=4)))
    ask(body, 768 + 2 * SLAB)
    assert body.take(Interrupt) == [INTERRUPT]
    assert not body.drain()
    assert list(body.flights) == [Channel.COMPUTE], "nothing of the running request was touched"
    assert A.id in body.instance.resident_models
    body.complete(Channel.COMPUTE, n_iterations=1)
    assert drained(body) == [Evict(A.id), PageOut((R,)), Drop(R)]
    assert body.instance.requests[R].n_tokens == 14


def test_nothing_is_discarded_while_blocks_are_moved() -> None:
    body = a_body(A, B, arena_bytes=2 * 768 + SLAB + 256)
    load(body, A)
    r = arrive(body, "r")
    step(body, Chunk(r, 0, 8))
    load(body, B)
    body.plan(Channel.COPY_IN, Plan(at_once=(Evict(A.id),)))
    body.plan(Channel.COPY_IN, Plan(Compact(1000)))
    assert Channel.COPY_IN in body.flights
    ask(body, 768 + SLAB)
    assert not body.drain()
    assert list(body.flights) == [Channel.COPY_IN]
    body.complete(Channel.COPY_IN)
    assert drained(body) == [Evict(B.id), PageOut((r,)), Drop(r)]


def test_pinned_models_leave_as_well_and_stay_pinned() -> None:
    body = running()
    body.apply(ModelWanted(0.0, A.id, pinned=True))
    ask(body, 768 + 3 * SLAB)
    drained(body)
    assert list(body.instance.resident_models) == []
    assert list(body.instance.asked_models) == [A.id]


def test_a_size_that_cannot_hold_what_is_served_is_refused_with_the_least_that_can() -> None:
    body = a_body(A, B, arena_bytes=4000)
    with pytest.raises(DoesNotFit, match=r"512 bytes is too little: A with a request of 8 tokens needs 1MiB"):
        body.instance.check_resizable(512)
    body.instance.check_resizable(768 + SLAB)
    arrive(body, "r", A, n_prompt=40, max_tokens=24)
    with pytest.raises(DoesNotFit, match="A with a request of 64 tokens"):
        body.instance.check_resizable(768 + SLAB)
    body.instance.check_resizable(768 + 3 * SLAB)
    body.apply(ModelWanted(0.0, B.id, pinned=True))
    with pytest.raises(DoesNotFit, match="beside the pinned models; ask for that or more, or first unpin"):
        body.instance.check_resizable(768 + 3 * SLAB)
    body.instance.check_resizable(2 * 768 + 3 * SLAB)


@pytest.mark.parametrize("arena_bytes", [0, -1])
def test_nothing_is_no_size(arena_bytes: int) -> None:
    with pytest.raises(InvalidRequest, match="holds nothing"):
        a_body(A).instance.check_resizable(arena_bytes)


def test_one_at_a_time_and_no_pins_meanwhile() -> None:
    body = running()
    body.plan(Channel.COMPUTE, Plan(Step(A.id, (NEXT,))))
    ask(body, 768 + 2 * SLAB)
    with pytest.raises(InUse, match="already: try again when that is done"):
        body.instance.check_resizable(768 + 3 * SLAB)
    with pytest.raises(InUse, match="cannot be pinned while the pool is being resized"):
        body.instance.check_pinnable(A.id)
    body.complete(Channel.COMPUTE)
    drained(body)
    body.instance.check_resizable(768 + 3 * SLAB + C.n_bytes)


def test_books_that_hold_something_are_not_replaced() -> None:
    body = running()
    with pytest.raises(IntegrityError, match="replaced while it holds"):
        body.instance.apply(Resized(0.0, 768 + 2 * SLAB))


def test_an_empty_arena_needs_no_draining() -> None:
    body = a_body(A)
    ask(body, 768 + 2 * SLAB)
    assert [drain.plan(channel, body.instance) for channel in Channel] == [IDLE] * 4
    assert drained(body) == []
    assert S not in body.instance.requests
