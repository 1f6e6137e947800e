"""What an instance owes its requests and models when things happen at awkward moments."""

from dataclasses import replace

import pytest

from tests.scheduler.instance.body import Body
from tests.scheduler.instance.scenes import (
    ADAPTED,
    NEXT,
    A,
    B,
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
from tokenmux.core.errors import IllegalPlan, InternalError
from tokenmux.core.event import (
    Arrived,
    Cancelled,
    CopyDone,
    ModelAdded,
    ModelRemoved,
    ModelWanted,
    Paused,
    Resumed,
    StepDone,
    Withdrawn,
)
from tokenmux.core.phases import PhaseChanged, RequestPhase, Residency
from tokenmux.core.plan import (
    Activate,
    Channel,
    Chunk,
    Compact,
    Discard,
    Evict,
    Fetch,
    PageIn,
    PageOut,
    Plan,
    Step,
)
from tokenmux.core.request import FinishReason, Request, ServiceLevel
from tokenmux.scheduler.policy.instance_policy import Fit
from tokenmux.testing import make_model


def stepping() -> Body:
    body = running()
    body.plan(Channel.COMPUTE, Plan(Step(A.id, (NEXT,), repeat=4)))
    return body


def reason_of(body: Body) -> FinishReason:
    return body.ended[R].reason


# ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cancelled_request_holds_nothing_at_once() -> None:
    body = running()
    body.apply(Cancelled(1.0, R))
    assert reason_of(body) is FinishReason.CANCELLED
    assert R not in body.ledger.kv


@pytest.mark.parametrize(
    ("channel", "operation", "before"),
    [
        (Channel.COMPUTE, Step(A.id, (NEXT,)), running),
        (Channel.COPY_OUT, PageOut((R,)), running),
        (Channel.COPY_IN, PageIn((R,)), paged_out),
    ],
)
def test_a_request_cancelled_in_flight_ends_when_the_operation_does(channel, operation, before) -> None:
    body = before()
    body.plan(channel, Plan(operation))
    body.apply(Cancelled(1.0, R))
    body.apply(Cancelled(1.0, R, FinishReason.FAILED))
    assert R not in body.ended
    body.complete(channel)
    assert reason_of(body) is FinishReason.CANCELLED, "the first reason counts"
    assert R not in body.ledger.kv


def test_a_request_cancelled_in_two_operations_ends_with_the_second() -> None:
    body = stepping()
    body.plan(Channel.COPY_OUT, Plan(PageOut((R,))))
    body.apply(Cancelled(1.0, R))
    body.complete(Channel.COMPUTE)
    assert R not in body.ended
    body.complete(Channel.COPY_OUT)
    assert reason_of(body) is FinishReason.CANCELLED


def test_the_last_token_ends_a_request() -> None:
    body = running()
    body.plan(Channel.COMPUTE, Plan(Step(A.id, (NEXT,), repeat=7)))
    body.complete(Channel.COMPUTE)
    assert reason_of(body) is FinishReason.LENGTH
    assert body.ended[R].n_tokens == 8


def test_a_step_may_end_early_and_go_on() -> None:
    body = stepping()
    body.complete(Channel.COMPUTE, n_iterations=2)
    assert body.instance.requests[R].n_drawn == 3
    step(body, NEXT._replace(start=14))
    assert body.instance.requests[R].n_drawn == 4


@pytest.mark.parametrize("first", [Withdrawn(1.0, R), Cancelled(1.0, R)])
def test_a_withdrawn_request_leaves_with_its_history(first) -> None:
    """Unless it was cancelled: then it ends here."""
    body = stepping()
    body.apply(first)
    body.apply(Withdrawn(1.0, R))
    assert body.take(RequestLeft) == []
    body.complete(Channel.COMPUTE)
    left = [effect.arrival for effect in body.take(RequestLeft)]
    if isinstance(first, Cancelled):
        assert left == []
        assert reason_of(body) is FinishReason.CANCELLED
    else:
        assert [(a.request.id, a.n_delivered, a.n_kept, a.history.n_on_time) for a in left] == [(R, 5, 0, 5)]
        assert R not in body.ended


@pytest.mark.parametrize("finish", ["stop", "length", "cancelled"])
def test_a_request_that_ends_while_it_is_withdrawn_has_ended(finish: str) -> None:
    """Going on elsewhere, it would draw tokens past its end."""
    body = running()
    body.plan(Channel.COMPUTE, Plan(Step(A.id, (NEXT,), repeat=7)))
    body.apply(Withdrawn(1.0, R))
    if finish == "cancelled":
        body.apply(Cancelled(1.0, R))
    n_iterations = 7 if finish == "length" else 2
    body.complete(Channel.COMPUTE, n_iterations=n_iterations, finished=[R] if finish == "stop" else [])
    assert body.take(RequestLeft) == []
    assert reason_of(body) is FinishReason(finish)


def test_nonsense_from_a_body_is_refused() -> None:
    body = stepping()
    operation = body.flights[Channel.COMPUTE].id
    for event in (
        CopyDone(1.0, 99),
        StepDone(1.0, 99, (1.0,)),
        StepDone(1.0, operation, (1.0,) * 5),
        StepDone(1.0, operation, ()),
        StepDone(1.0, operation, (2.0,)),
    ):
        fresh = stepping()
        with pytest.raises(InternalError):
            fresh.instance.apply(event)


# ── models ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_removing_a_model_fails_its_requests_and_frees_its_weights() -> None:
    body = running()
    body.apply(ModelRemoved(1.0, A.id))
    assert {r: record.reason for r, record in body.ended.items()} == {
        R: FinishReason.FAILED,
        S: FinishReason.FAILED,
    }
    assert body.ledger.arena.used_bytes == 0


NEW_A = make_model("A", images={"new a": 200})


@pytest.mark.parametrize("again", [A, NEW_A])
def test_a_model_removed_under_a_step_can_be_registered_again(again) -> None:
    """The old weights stay until the step ends; the new registration is not taken for the old one."""
    body = stepping()
    body.apply(ModelRemoved(1.0, A.id))
    body.apply(ModelAdded(1.0, again))
    arrive(body, "new", again)
    assert body.instance.models[A.id].residency is not Residency.RESIDENT
    body.complete(Channel.COMPUTE)
    assert body.ledger.arena.used_bytes == 0
    assert list(body.instance.live_models) == [A.id], "the end of the old requests hides none of the new"
    assert body.ended.keys() == {R, S}


def test_a_model_activated_anew_keeps_its_weights_when_the_old_step_ends() -> None:
    body = stepping()
    body.apply(ModelRemoved(1.0, A.id))
    body.apply(ModelAdded(1.0, replace(A)))
    body.plan(Channel.COPY_IN, Plan(Activate(A.id)))
    body.complete(Channel.COPY_IN)
    body.complete(Channel.COMPUTE)
    body.check()
    assert body.instance.models[A.id].residency is Residency.RESIDENT
    body.apply(ModelRemoved(2.0, A.id))
    assert body.ledger.arena.used_bytes == 0


@pytest.mark.parametrize("again", [A, NEW_A])
def test_a_model_removed_while_it_loads_can_be_registered_again(again) -> None:
    body = a_body(A)
    body.plan(Channel.FETCH, Plan(Fetch(A.id)))
    body.complete(Channel.FETCH)
    body.plan(Channel.COPY_IN, Plan(Activate(A.id)))
    body.apply(ModelRemoved(1.0, A.id))
    body.apply(ModelAdded(1.0, again))
    body.complete(Channel.COPY_IN)
    assert body.instance.models[A.id].residency is not Residency.RESIDENT
    assert body.ledger.arena.used_bytes == 0
    assert not body.instance.resident_models


def test_a_failed_fetch_fails_those_who_waited_for_it() -> None:
    body = a_body(A, B)
    arrive(body, "r")
    arrive(body, "other", B)
    body.plan(Channel.FETCH, Plan(Fetch(A.id)))
    body.complete(Channel.FETCH, error="the image is cut off")
    assert reason_of(body) is FinishReason.FAILED
    assert list(body.instance.requests) == ["other"]


def test_an_activation_that_is_superseded_leaves_the_model_in_host_memory() -> None:
    body = a_body(A)
    arrive(body, "r")
    body.plan(Channel.FETCH, Plan(Fetch(A.id)))
    body.complete(Channel.FETCH)
    body.plan(Channel.COPY_IN, Plan(Activate(A.id)))
    body.complete(Channel.COPY_IN, superseded=True)
    assert body.instance.models[A.id].residency is Residency.HOST
    assert body.ledger.arena.used_bytes == 0
    assert R in body.instance.requests


def test_a_failed_activation_fails_those_who_waited_and_the_next_attempt_reads_the_model_again() -> None:
    body = a_body(A)
    arrive(body, "r")
    body.plan(Channel.FETCH, Plan(Fetch(A.id)))
    body.complete(Channel.FETCH)
    body.plan(Channel.COPY_IN, Plan(Activate(A.id)))
    body.complete(Channel.COPY_IN, error="it cannot be run here")
    assert reason_of(body) is FinishReason.FAILED
    assert body.instance.models[A.id].load_error == "it cannot be run here"
    assert body.instance.models[A.id].residency is Residency.DISK
    assert body.ledger.arena.used_bytes == body.ledger.cache.used_bytes == 0
    assert not body.instance.can_fetch(A.id), "not at once"
    body.instance.check_integrity()


def test_a_failed_activation_leaves_images_that_another_copy_reads() -> None:
    body = a_body(A)
    body.plan(Channel.FETCH, Plan(Fetch(A.id)))
    body.complete(Channel.FETCH)
    body.plan(Channel.COPY_IN, Plan(Activate(A.id)))
    body.ledger.cache.hold(A.images[0].id)  # as another instance of the host does
    body.complete(Channel.COPY_IN, error="it cannot be run here")
    assert body.ledger.cache.has(A.images[0].id)


def test_unloading_a_model_while_it_loads_is_not_forgotten() -> None:
    body = a_body(A)
    body.plan(Channel.FETCH, Plan(Fetch(A.id)))
    body.complete(Channel.FETCH)
    body.apply(ModelWanted(0.0, A.id, wanted=True))
    body.plan(Channel.COPY_IN, Plan(Activate(A.id)))
    body.apply(ModelWanted(0.0, A.id, wanted=False))
    body.complete(Channel.COPY_IN)
    assert body.instance.models[A.id].wanted is False
    assert list(body.instance.asked_models) == [A.id]
    body.plan(Channel.COPY_IN, Plan(at_once=(Evict(A.id),)))
    assert body.instance.models[A.id].wanted is None
    assert not body.instance.asked_models


def test_a_shared_image_is_copied_once_and_kept_for_the_other() -> None:
    body = a_body(A, ADAPTED)
    load(body, A)
    body.plan(Channel.FETCH, Plan(Fetch(ADAPTED.id)))
    body.complete(Channel.FETCH)
    started = body.plan(Channel.COPY_IN, Plan(Activate(ADAPTED.id)))
    assert started is not None
    assert [image.id for image in started.images] == ["adapter"]
    body.complete(Channel.COPY_IN)
    body.plan(Channel.COPY_IN, Plan(at_once=(Evict(A.id),)))
    body.check()


def test_fit_counts_an_image_that_the_eviction_would_take_away() -> None:
    """Evicting A to make room for A's adapted sibling takes their common image along, whose room is needed
    again."""
    body = a_body(A, ADAPTED, arena_bytes=768 + 256)
    load(body, A)
    body.plan(Channel.FETCH, Plan(Fetch(ADAPTED.id)))
    body.complete(Channel.FETCH)
    assert body.instance.fit(ADAPTED.id, [A.id]) is Fit.NOW
    assert body.instance.fit(ADAPTED.id) is Fit.NOW
    body.ledger.cache.drop(A.images[0].id)
    assert body.instance.fit(ADAPTED.id, [A.id]) is Fit.NO, "the host does not have the image any more"
    small = a_body(A, ADAPTED, arena_bytes=768)
    load(small, A)
    assert small.instance.fit(ADAPTED.id, [A.id]) is Fit.NO


def test_nothing_is_given_room_while_a_compaction_is_under_way() -> None:
    """The books say already what the device does not yet: what looks free is still being read."""
    low, gap, high = make_model("low", 256), make_model("gap", 768), make_model("high", 512)
    body = a_body(low, gap, high, arena_bytes=256 + 768 + 512 + 512)
    for facts in (low, gap, high):
        load(body, facts)
    body.plan(Channel.COPY_IN, Plan(Compact(1200), (Evict(gap.id),)))
    request = arrive(body, "q", low)
    first = Step(low.id, (Chunk(request, 0, 8),))
    with pytest.raises(IllegalPlan, match="no room"):
        body.plan(Channel.COMPUTE, Plan(first))
    with pytest.raises(IllegalPlan, match="not usable"):
        body.plan(Channel.COMPUTE, Plan(Step(high.id, (NEXT,))))
    assert body.instance.fit(gap.id) is Fit.NO
    body.complete(Channel.COPY_IN)
    body.plan(Channel.COMPUTE, Plan(first))
    body.complete(Channel.COMPUTE)


def test_fit_needs_no_compaction_where_an_eviction_leaves_one_hole() -> None:
    """Also for a model of several images."""
    two = make_model("two", images={"x": 256, "y": 512})
    body = a_body(A, two, arena_bytes=768)
    load(body, A)
    assert body.instance.fit(two.id, [A.id]) is Fit.NOW


# ── requests ────────────────────────────────────────────────────────────────────────────────────────────────


def test_discarded_kv_is_rebuilt_from_all_tokens_and_counted() -> None:
    body = running()
    body.plan(Channel.COPY_IN, Plan(at_once=(Discard(R),)))
    assert body.instance.metrics.n_discards == 1
    assert R in body.instance.models[A.id].waiting
    step(body, Chunk(R, 0, 8))
    step(body, Chunk(R, 8, 5))
    assert body.instance.requests[R].n_drawn == 2, "the rebuild drew the next token, none again"


def test_a_recovered_request_goes_on_where_it_stopped() -> None:
    body = a_body(A)
    load(body)
    request = Request(R, A.id, 4, 8, 0.0, ServiceLevel(1.0, 0.5))
    body.apply(Arrived(0.0, request, n_delivered=3))
    assert body.instance.requests[R].deadline_s == 1.0 + 3 * 0.5
    step(body, Chunk(R, 0, 7))
    assert body.instance.requests[R].n_drawn == 4


def test_what_a_request_was_goes_with_it_to_another_instance() -> None:
    """Pauses of its client, past ones and the present one, and the tokens that were on time."""
    first, second = running(), a_body(A)
    first.apply(Paused(1.0, R))
    first.apply(Resumed(4.0, R))
    first.apply(Paused(5.0, R))
    here = first.instance.requests[R]
    first.apply(Withdrawn(7.0, R))
    (left,) = first.take(RequestLeft)
    assert left.arrival.history.paused_s == 5.0
    load(second)
    second.apply(replace(left.arrival, n_kept=0))
    there = second.instance.requests[R]
    assert there.deadline_s == here.deadline_s + 2.0
    assert (there.n_on_time, there.first_token_s) == (1, here.first_token_s)


def test_a_pause_pushes_deadlines_back_and_stops_the_request() -> None:
    body = running()
    due_s = body.instance.requests[R].deadline_s
    body.apply(Paused(1.0, R))
    body.apply(Paused(2.0, R))
    assert R in body.instance.models[A.id].paused
    assert body.instance.models[A.id].n_live == 1
    body.apply(Resumed(4.0, R))
    body.apply(Resumed(9.0, R))
    assert R in body.instance.models[A.id].decoding
    assert body.instance.requests[R].deadline_s == due_s + 3.0


def test_a_model_is_as_urgent_as_its_most_urgent_request() -> None:
    body = running()
    urgent = Request(S, A.id, 12, 8, body.now_s, ServiceLevel(0.5, 0.1))
    body.apply(Cancelled(body.now_s, S))
    del body.ended[S]
    body.apply(Arrived(body.now_s, urgent))
    a = body.instance.models[A.id]
    assert a.due_s == a.runnable_due_s == urgent.deadline_s(0)
    body.apply(Paused(body.now_s, S))
    assert a.due_s == body.instance.requests[R].deadline_s


def test_phases_are_told_once_each_as_they_change() -> None:
    body = a_body(A)
    arrive(body, "r")
    load(body)
    step(body, Chunk(R, 0, 8))
    step(body, Chunk(R, 8, 4))
    body.plan(Channel.COPY_OUT, Plan(PageOut((R,))))
    body.complete(Channel.COPY_OUT)
    body.plan(Channel.COPY_IN, Plan(at_once=(Discard(R),)))
    body.apply(Paused(1.0, R))
    assert [change.phase for change in body.take(PhaseChanged)] == [
        RequestPhase.QUEUED,
        RequestPhase.LOADING,
        RequestPhase.QUEUED,
        RequestPhase.RUNNING,
        RequestPhase.QUEUED,
        RequestPhase.PAUSED,
    ]
    assert body.take(PhaseChanged) == []


def test_the_audit_notices_a_request_that_is_filed_nowhere() -> None:
    body = running()
    body.instance.models[A.id].decoding.clear()
    with pytest.raises(InternalError, match="filed nowhere"):
        body.instance.check_integrity()


def test_the_audit_notices_a_request_without_a_table() -> None:
    body = running()
    body.ledger.close(R)
    with pytest.raises(InternalError, match="tables differ"):
        body.instance.check_integrity()


def test_a_fetch_that_fails_for_nobody_is_tried_again_after_growing_pauses() -> None:
    body = a_body(A, B)
    body.apply(ModelWanted(0.0, A.id, pinned=True))
    pauses_s = []
    for _ in range(4):
        assert body.instance.can_fetch(A.id)
        body.plan(Channel.FETCH, Plan(Fetch(A.id)))
        body.complete(Channel.FETCH, error="the file is gone")
        assert not body.instance.can_fetch(A.id)
        pauses_s.append(body.instance.models[A.id].fetch_after_s - body.now_s)
        body.now_s = body.instance.models[A.id].fetch_after_s
        body.apply(ModelWanted(body.now_s, B.id))
    assert pauses_s == pytest.approx([pauses_s[0] * 2**n for n in range(4)])
    assert pauses_s[0] > 0


@pytest.mark.parametrize("asks", ["request", "operator"])
def test_a_fetch_that_failed_is_tried_at_once_for_whoever_asks(asks: str) -> None:
    body = a_body(A)
    body.apply(ModelWanted(0.0, A.id, pinned=True))
    body.plan(Channel.FETCH, Plan(Fetch(A.id)))
    body.complete(Channel.FETCH, error="the file is gone")
    assert not body.instance.can_fetch(A.id)
    assert body.instance.models[A.id].load_error == "the file is gone"
    if asks == "request":
        arrive(body, "r")
    else:
        body.apply(ModelWanted(body.now_s, A.id, wanted=True))
    assert body.instance.can_fetch(A.id)
    body.plan(Channel.FETCH, Plan(Fetch(A.id)))
    body.complete(Channel.FETCH)
    assert body.instance.models[A.id].fetch_pause_s == 0.0
    assert body.instance.models[A.id].load_error == ""


@pytest.mark.parametrize("n_kept", [4, 9, 13])
def test_kept_kv_ends_where_a_step_may_have_ended(n_kept: int) -> None:
    """On the grid of 8 inside the prompt of 12 tokens, and before the last of its 13 tokens."""
    request = Request(R, A.id, 12, 8, 0.0)
    body = a_body(A)
    with pytest.raises(InternalError, match=f"KV of {n_kept} tokens, where no step can have ended"):
        body.instance.apply(Arrived(0.0, request, n_delivered=1, n_kept=n_kept))
    for good in (8, 12):
        body = a_body(A)
        body.apply(Arrived(0.0, request, n_delivered=1, n_kept=good))
        assert body.instance.requests[R].n_computed == good
