"""What a node tells of itself can be shown at every moment, and is not older than its answers."""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.node.scenes import A, B, node_with, request
from tokenmux.core.request import RequestId
from tokenmux.messages.commands import Cancel, Command, Load, Pause, Pin, Resume, Unload
from tokenmux.messages.reports import Acknowledged, ModelStatus, NodeStatus, Report
from tokenmux.node.node_status import POSTPONED_S, STATUS_INTERVAL_S, StatusReporter
from tokenmux.server.front.shown_models import ShownModel
from tokenmux.server.grpc_api.model_messages import model_message
from tokenmux.testing import make_model
from tokenmux.testing.virtual_node import NodeOnVirtualTime


def reporter_of(body: NodeOnVirtualTime) -> StatusReporter:
    ledger = body.instance.ledger
    return StatusReporter(
        body.pool, body.node.devices, body.node.accusations.refused, ledger.cache, ledger.host_kv, body.clock
    )


NAMES = ("r", "s", "t", "u")
DEEDS = st.lists(
    st.tuples(st.floats(0, 8), st.sampled_from([Cancel, Pause, Resume]), st.sampled_from(NAMES)), max_size=12
)


@given(DEEDS, st.lists(st.floats(0, 8), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_counts_are_counts_whatever_is_cancelled_or_paused_in_mid_step(
    deeds: list[tuple[float, type[Cancel | Pause | Resume], str]], looks: list[float]
) -> None:
    """A request that left while its step was in flight was counted as running, and not as live: the queue
    had -1."""
    body = node_with(24, n_output=dict.fromkeys(NAMES, 300))
    start_s = body.clock.now_s()
    seen: list[ModelStatus] = []

    def look() -> None:
        report = reporter_of(body).report(at_once=True)
        assert report is not None
        seen.extend(report.models)
        live = [r for r in body.instance.requests.values() if r.to_end is None and not r.is_paused]
        assert sum(m.n_queued + m.n_running + m.n_paged_out for m in report.models) == len(live)

    for i, name in enumerate(NAMES):
        body.submit_at(request(name, (A, B)[i % 2], start_s, 300))
    for at_s, deed, name in deeds:
        body.clock.call_at(start_s + at_s, partial(body.send, deed(RequestId(name))))
        body.clock.call_at(start_s + at_s, look)
    for at_s in looks:
        body.clock.call_at(start_s + at_s, look)
    body.clock.run(until_s=start_s + 9)
    for status in seen:
        assert min(status.n_queued, status.n_running, status.n_paged_out) >= 0
        shown = model_message(ShownModel(status.model, make_model(status.model), False, "", status, None))
        assert shown.refusal == ""


def test_tokens_that_are_due_count_before_they_are_drawn() -> None:
    """A model that gets no tokens has no late ones: by what was drawn all was well."""
    body = node_with(16, n_output={"r": 300, "s": 300})
    start_s = body.clock.now_s()
    overdue: dict[float, int] = {}

    def look() -> None:
        report = reporter_of(body).report(at_once=True)
        assert report is not None
        overdue[body.clock.now_s() - start_s] = report.models[1].n_tokens_overdue
        for state in body.instance.models[B].requests():  # it is behind while it steps, too
            before, state.in_step = state.in_step, True
            assert state.n_overdue(body.clock.now_s()) == report.models[1].n_tokens_overdue
            state.in_step = before

    body.submit_at(request("r", A, start_s, 300))
    body.submit_at(request("s", B, start_s, 300))
    body.clock.call_at(start_s + 9, look)
    body.clock.call_at(start_s + 12.05, look)  # loading the other model alone took 10 s
    body.clock.run()
    look()
    assert list(overdue.values()) == [0, 21, 0]


def before_the_answer(said: list[Report]) -> NodeStatus:
    """The last status that was told before the last answer."""
    last = max(i for i, message in enumerate(said) if isinstance(message, Acknowledged))
    return [message for message in said[:last] if isinstance(message, NodeStatus)][-1]


@pytest.mark.parametrize(
    "commands", [[Load(A)], [Load(A), Unload(A)], [Pin(A, True)], [Pin(A, True), Pin(A, False)]]
)
def test_an_answer_comes_after_a_status_that_shows_what_was_done(commands: list[Command]) -> None:
    """All within the fifth of a second in which no second status is due."""
    body = node_with(40)
    for command in commands:
        body.send(command)
        shown = next(m for m in before_the_answer(body.said).models if m.model == A)
        state = body.instance.models[A]
        assert (shown.residency, shown.pinned) == (state.residency, state.pinned)
    assert shown.pinned == (commands[-1] == Pin(A, True))


def test_a_snapshot_waits_a_moment_while_the_node_decides_and_no_longer() -> None:
    body = node_with(40)
    reporter = reporter_of(body)
    began_s = body.clock.now_s()
    assert reporter.report() is not None
    assert reporter.report() is None
    assert reporter.due_s == began_s + STATUS_INTERVAL_S
    body.clock.call_at(began_s + STATUS_INTERVAL_S, lambda: seen.append(reporter.report(has_decided=True)))
    body.clock.call_at(
        began_s + STATUS_INTERVAL_S + POSTPONED_S, lambda: seen.append(reporter.report(has_decided=True))
    )
    seen: list[NodeStatus | None] = []
    body.clock.run(until_s=began_s + 1)
    held_back, told = seen
    assert held_back is None
    assert told is not None
