"""The node between messages and operations, on virtual time."""

import itertools

import pytest

from tests.node.scenes import GB, SHAPE, A, B, answers, ends, node_with, request
from tokenmux.core.errors import DoesNotFit, ErrorCode
from tokenmux.core.facts import FIRST_INSTANCE, ModelId
from tokenmux.core.phases import PhaseChanged, RequestPhase, Residency
from tokenmux.core.plan import Channel
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.messages.commands import (
    Cancel,
    Load,
    Order,
    Pause,
    Pin,
    Register,
    Resume,
    Ticket,
    Unload,
    Unregister,
)
from tokenmux.messages.completions import Drew
from tokenmux.messages.launches import AddModel, Bind, MapImage, OperationId, RemoveModel, Unbind, UnmapImage
from tokenmux.messages.reports import Alive, Broken, Finished, NodeStatus, Tokens
from tokenmux.scheduler.metrics.counters import MODEL_TABLE
from tokenmux.testing import make_model
from tokenmux.testing.virtual_node import ImaginedMemory, NodeOnVirtualTime


def weights_told(body: NodeOnVirtualTime) -> list[tuple[str, ModelId]]:
    """What the first device's executor was told of models and where their weights are."""
    told = []
    for instruction in body.executor_of(0).log:
        match instruction:
            case AddModel(facts):
                told.append(("add", facts.id))
            case Bind(model) | Unbind(model) | RemoveModel(model):
                told.append((type(instruction).__name__.lower(), model))
    return told


def test_requests_of_two_models_share_a_device_that_holds_one() -> None:
    body = node_with(n_output={"r": 100, "s": 100})
    body.submit_at(request("r", A))
    body.submit_at(request("s", B))
    body.clock.run()
    assert ends(body) == {"r": FinishReason.LENGTH, "s": FinishReason.LENGTH}
    assert body.node.contents == {}
    body.instance.check_integrity()


def failure(body: NodeOnVirtualTime) -> tuple[str, ErrorCode | None]:
    """Why the only request failed, and with which code."""
    (end,) = [message for message in body.said if isinstance(message, Finished)]
    assert end.reason is FinishReason.FAILED
    return end.detail, end.code


def asked_of_another_model(body: NodeOnVirtualTime) -> None:
    """Register a model, of which the host has no weights yet, and ask it."""
    other = make_model(ModelId("c"), 10 * GB, kv=SHAPE, max_context=4096, n_parameters=GB)
    body.send(Register(other, path=""))
    body.submit_at(request("r", other.id, body.clock.now_s()))
    body.clock.run(until_s=body.clock.now_s() + 1)


def test_a_request_whose_model_cannot_be_read_has_the_code_of_that_error() -> None:
    body = node_with(n_output={"r": 10})
    body.unreadable.add(ModelId("c"))
    asked_of_another_model(body)
    assert failure(body) == ("the file is gone", ErrorCode.BAD_CHECKPOINT)


def test_a_request_for_whose_model_the_host_has_no_memory_has_the_code_of_that_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def begin_fetch(*_: object) -> None:
        raise DoesNotFit("no memory for an image")

    body = node_with(n_output={"r": 10})
    monkeypatch.setattr(ImaginedMemory, "begin_fetch", begin_fetch)
    asked_of_another_model(body)
    assert failure(body) == ("no memory for an image", ErrorCode.DOES_NOT_FIT)


def test_weights_are_bound_when_a_model_comes_and_unbound_when_it_goes() -> None:
    body = node_with(n_output={"r": 10, "s": 10})
    body.submit_at(request("r", A, 0.0, 10))
    body.submit_at(request("s", B, 100.0, 10))
    body.clock.run()
    assert weights_told(body) == [("add", A), ("add", B), ("bind", A), ("unbind", A), ("bind", B)]


@pytest.mark.parametrize("is_idle_meanwhile", [False, True])
def test_a_model_that_comes_back_is_made_ready_with_its_image_again(is_idle_meanwhile: bool) -> None:
    """Its image may still be in host memory, and an executor makes models ready when it gets an image."""
    body = node_with(n_output={"r": 10, "s": 10})
    body.submit_at(request("r", A, 0.0, 10))
    body.clock.run()
    facts = body.instance.models[A].facts
    (image,) = facts.images
    body.send(Unregister(A))
    if is_idle_meanwhile:
        body.beat()
    body.send(Register(facts, "path"))
    body.submit_at(request("s", A, 200.0, 10))
    body.clock.run()
    assert ends(body) == {"r": FinishReason.LENGTH, "s": FinishReason.LENGTH}
    told = [
        i for i in body.executor_of(0).log if isinstance(i, MapImage | UnmapImage) and i.image == image.id
    ]
    assert told == [
        MapImage(image.id, image.n_bytes, filled=False),
        UnmapImage(image.id),
        MapImage(image.id, image.n_bytes, filled=True),
    ]


def test_books_that_are_wrong_end_the_node_when_it_falls_idle(caplog: pytest.LogCaptureFixture) -> None:
    body = node_with(n_output={"r": 10, "s": 10})
    body.submit_at(request("r", A, 0.0, 10))
    body.clock.run(until_s=200.0)
    body.beat()
    assert body.said[-1] == Alive()
    body.instance.ledger.arena.allocate_low(1000)  # which nobody knows of
    body.submit_at(request("s", A, 200.0, 10))
    body.clock.call_at(200.001, body.beat)  # a step is in flight: nobody looks
    body.clock.call_at(300.0, body.beat)
    body.clock.run(until_s=299.0)
    assert not [said for said in body.said if isinstance(said, Broken)]
    body.clock.run()
    (broken,) = [said for said in body.said if isinstance(said, Broken)]
    assert broken.detail.startswith("the books of the node are wrong: ")
    assert body.node.stopped
    assert "the books of the node are wrong" in caplog.text


@pytest.mark.parametrize("after_s", [0.5, 5.0, 13.0])
def test_a_cancelled_request_frees_everything_whether_fetching_loading_or_running(after_s: float) -> None:
    body = node_with(n_output={"r": 100_000})
    start_s = body.clock.now_s()
    body.submit_at(request("r", A, start_s, 100_000))
    body.clock.call_at(start_s + after_s, lambda: body.send(Cancel(RequestId("r"))))
    body.clock.run()
    assert ends(body) == {"r": FinishReason.CANCELLED}
    assert body.instance.ledger.blocks.used_bytes == 0
    assert body.node.contents == {}
    body.instance.check_integrity()


def test_a_load_that_nobody_waits_for_any_more_ends_and_its_model_is_let_go() -> None:
    body = node_with(n_output={"r": 10, "s": 10})
    start_s = body.clock.now_s()
    body.submit_at(request("r", A, start_s, 10))
    body.submit_at(request("s", B, start_s + 1.0, 10))
    body.clock.call_at(start_s + 3.0, lambda: body.send(Cancel(RequestId("r"))))
    body.clock.run()
    assert ends(body) == {"r": FinishReason.CANCELLED, "s": FinishReason.LENGTH}
    assert weights_told(body)[2:] == [("bind", A), ("unbind", A), ("bind", B)]
    assert body.instance.metrics.n_superseded == 1
    body.instance.check_integrity()


def test_a_paused_request_does_not_run_and_its_deadlines_stand_still() -> None:
    body = node_with(n_output={"r": 100_000})
    body.submit_at(request("r", A, body.clock.now_s(), 100_000))
    body.clock.run(until_s=body.clock.now_s() + 20.0)
    body.send(Pause(RequestId("r")))
    body.clock.run()
    state = body.instance.requests[RequestId("r")]
    drawn, deadline_s = state.n_drawn, state.deadline_s
    assert drawn > 0
    body.clock.call_at(body.clock.now_s() + 1000.0, lambda: body.send(Resume(RequestId("r"))))
    body.clock.run(until_s=body.clock.now_s() + 1000.0)
    assert state.deadline_s >= deadline_s + 1000.0
    body.clock.run(until_s=body.clock.now_s() + 5.0)
    assert state.n_drawn > drawn


def test_a_client_is_told_where_its_request_is() -> None:
    body = node_with(n_output={"r": 100})
    body.submit_at(request("r", A))
    body.clock.run()
    phases = [message.phase for message in body.said if isinstance(message, PhaseChanged)]
    assert phases == [RequestPhase.QUEUED, RequestPhase.LOADING, RequestPhase.QUEUED, RequestPhase.RUNNING]


def test_operators_load_pin_and_unload() -> None:
    body = node_with()
    body.send(Load(A))
    body.clock.run()
    assert body.instance.models[A].residency is Residency.RESIDENT
    body.send(Unload(A))
    body.clock.run()
    assert body.instance.models[A].residency is Residency.HOST
    body.send(Pin(B, pinned=True))
    assert "shut out another model" in answers(body)[-1]


def test_a_pinned_model_stays_and_is_brought_in() -> None:
    body = node_with(26, n_output={"r": 50})
    body.send(Pin(A, pinned=True))
    body.clock.run()
    assert body.instance.models[A].residency is Residency.RESIDENT
    body.send(Unload(A))
    assert "unpin it first" in answers(body)[-1]
    body.submit_at(request("r", B, body.clock.now_s(), 50))
    body.clock.run()
    assert body.instance.models[A].residency is Residency.RESIDENT
    assert body.instance.models[B].residency is Residency.RESIDENT


def test_wrong_administration_is_answered_not_raised() -> None:
    body = node_with()
    body.send(Load(ModelId("nobody")))
    assert answers(body)[-1] == "model nobody is not registered"
    body.send(Load(A))
    body.clock.run(until_s=body.clock.now_s() + 1.0)
    assert body.instance.in_flight(Channel.COPY_IN) is not None
    body.send(Unregister(A))
    assert "being loaded" in answers(body)[-1]
    body.clock.run()
    body.send(Unregister(A))
    assert answers(body)[-1] == ""
    body.submit_at(request("late", A))
    body.clock.run()
    assert ends(body) == {"late": FinishReason.FAILED}


def test_tokens_carry_their_index_and_none_follow_a_cancellation() -> None:
    body = node_with(n_output={"r": 100_000})
    body.submit_at(request("r", A, body.clock.now_s(), 100_000))
    body.clock.run(until_s=body.clock.now_s() + 15.0)
    assert body.instance.requests[RequestId("r")].in_step

    def tokens() -> list[int]:
        return [m.index for m in body.said if isinstance(m, Tokens) and m.request == "r"]

    drawn = len(tokens())
    assert drawn > 0
    body.node.receive(Order(Ticket(9), Cancel(RequestId("r"))))
    step = body.node.devices[FIRST_INSTANCE].step
    assert step is not None
    body.node.heard(FIRST_INSTANCE, (Drew(OperationId(step.started.id), body.clock.now_s(), (9,)),))
    body.clock.run()
    assert tokens() == list(range(drawn))


def test_the_policy_is_not_asked_while_a_burst_goes_on() -> None:
    body = node_with(n_output={"r": 1000})
    body.submit_at(request("r", A, body.clock.now_s(), 1000))
    asked_s: list[float] = []
    plan = body.instance.policy.plan
    body.instance.policy.plan = lambda channel, view: asked_s.append(view.now_s) or plan(channel, view)  # type: ignore[method-assign, func-returns-value]
    body.clock.run()
    drawn_s = [message.at_s for message in body.said if isinstance(message, Tokens)]
    assert len(drawn_s) == 1000
    assert len(set(asked_s)) < len(drawn_s) / 2


def test_a_node_that_cannot_continue_says_so_once_and_stops_with() -> None:
    body = node_with()
    body.node.broken("the disk is gone")
    body.node.pump()
    assert [m.detail for m in body.said if isinstance(m, Broken)] == ["the disk is gone"]
    assert body.node.stopped


def test_status_is_sent_at_most_ten_times_a_second_and_the_last_is_not_lost() -> None:
    body = node_with(n_output={"r": 1000})
    body.submit_at(request("r", A, body.clock.now_s(), 1000))
    body.clock.run()
    statuses = [message for message in body.said if isinstance(message, NodeStatus)]
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(statuses)]
    assert min(gaps) >= 0.1 - 1e-9
    last = [message for message in body.said if isinstance(message, NodeStatus)][-1]
    assert last.devices[0].running_model is None
    assert MODEL_TABLE.named(last.models[0].counts)["n_tokens"] == 1000
