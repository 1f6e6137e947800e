"""Requests that end because somebody cancels them by their ids, or because their client's time is over."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from threading import Event

import pytest

from tests.server.front.asking import ask, events_of, started, tokens, until
from tests.server.scripted_models import FakeEntry, LetterTokenizer, facts
from tokenmux.core.errors import DeadlineExceeded, Ended, UnknownRequest
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.messages.commands import Cancel, Submit
from tokenmux.messages.reports import Broken, Finished
from tokenmux.server.front.api_keys import Key, Scope
from tokenmux.server.front.call import Call
from tokenmux.server.front.front import Front
from tokenmux.server.front.queue_pace import LEAST_STARTS, MOST_STARTS, QueuePace
from tokenmux.testing import make_request
from tokenmux.testing.scripted_node import ScriptedNodes

MINE = Key.of("mine", Scope.INFERENCE, "a")
OTHERS = Key.of("others", Scope.INFERENCE, "b")
ADMIN = Key.of("root", Scope.ADMIN, "c")


async def rest(stream: Call) -> list[object]:
    return [event async for event in stream]


async def test_a_request_is_cancelled_by_its_id() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask(request_id="it")) as stream:
        hub.post(tokens(stream.id, 0, "de"))
        front.cancel("it")
        with pytest.raises(Ended, match="request it was cancelled by its id"):
            await rest(stream)
        assert await hub.next(Cancel) == Cancel(stream.id)
        front.cancel("it")
        await until(lambda: front.n_live == 0)
    with pytest.raises(UnknownRequest, match="there is no live request 'it' of yours"):
        front.cancel("it")


async def test_an_id_that_the_server_made_can_be_cancelled_too() -> None:
    async with started(ScriptedNodes()) as front, front.open(ask()) as stream:
        front.cancel((await anext(stream)).request)  # type: ignore[union-attr]
        with pytest.raises(Ended):
            await rest(stream)


async def test_only_its_tenant_or_an_administrator_cancels_a_request() -> None:
    async with (
        started(ScriptedNodes()) as front,
        front.open(ask(request_id="it"), MINE) as mine,
        front.open(ask(request_id="it"), OTHERS) as others,
        front.open(ask(request_id="only"), OTHERS),
    ):
        for said in ("", "others"):
            with pytest.raises(UnknownRequest):
                front.cancel("only", MINE, said)
        front.cancel("it", MINE)
        assert (mine.closed, others.closed) == (True, False)
        with pytest.raises(UnknownRequest):
            front.cancel("it", ADMIN, "nobody")
        front.cancel("it", ADMIN, "others")
        assert others.closed
        front.cancel("only", ADMIN)


@pytest.fixture
def gate() -> Iterator[Event]:
    """A tokenizer waits for it."""
    opened = Event()
    yield opened
    opened.set()


def slow_entry(gate: Event) -> FakeEntry:
    return FakeEntry(facts("letters"), letters=LetterTokenizer(gate=lambda: gate.wait() and None))


async def test_a_request_is_cancelled_while_its_prompt_is_tokenized(gate: Event) -> None:
    async with started(ScriptedNodes(), slow_entry(gate)) as front:
        call = asyncio.create_task(events_of(front, ask(request_id="it")))
        await until(lambda: front.n_live == 1)
        front.cancel("it")
        with pytest.raises(Ended, match="request it was cancelled by its id"):
            await call
        assert front.n_live == 0


async def test_time_passes_while_a_prompt_is_tokenized(gate: Event) -> None:
    async with started(ScriptedNodes(), slow_entry(gate)) as front:
        with pytest.raises(DeadlineExceeded, match=r"the time for request it was over after 0 tokens"):
            await events_of(front, ask(request_id="it", timeout_s=0.01))
        assert front.n_live == 0


async def test_the_node_is_told_when_a_client_stops_waiting() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask(timeout_s=30.0)) as stream:
        assert (await hub.next(Submit)).request.expires_s == 130.0
        hub.post(tokens(stream.id, 0, "de"))
        hub.post(Finished(stream.id, FinishReason.EXPIRED, 130.0))
        with pytest.raises(DeadlineExceeded, match="was over after 2 tokens: give it more"):
            await rest(stream)
        assert front.n_live == 0


async def test_a_request_that_no_node_has_ends_in_time() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask(timeout_s=0.5)) as stream:
        await hub.next(Submit)
        hub.fails_to_start = 1000
        hub.post(Broken("gone"))
        with pytest.raises(DeadlineExceeded):
            await rest(stream)
        assert front.n_live == 0


async def test_a_node_that_does_not_end_it_is_told_to() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask(timeout_s=0.5)) as stream:
        with pytest.raises(DeadlineExceeded):
            await rest(stream)
        assert await hub.next(Cancel) == Cancel(stream.id, FinishReason.EXPIRED)
        await until(lambda: front.n_live == 0)


# What would expire in the queue


def paced(n_starts: int, each_s: float, n_waiting: int) -> tuple[QueuePace, list[float]]:
    """A pace that was measured, while others waited."""
    now = [100.0]
    pace = QueuePace(lambda: now[0])
    for number in range(n_starts + n_waiting):
        pace.arrived(make_request(f"r{number}", "m", arrival_s=100.0))
    for number in range(n_starts):
        now[0] += each_s
        pace.ran(RequestId(f"r{number}"))
    return pace, now


def test_what_would_expire_in_the_queue_is_refused_at_once() -> None:
    pace, now = paced(LEAST_STARTS, each_s=1.0, n_waiting=10)
    request = make_request("new", "m", arrival_s=now[0])
    with pytest.raises(DeadlineExceeded, match=r"10 requests are ahead .* takes about 10 s .* it has 4 s"):
        pace.check(request, 4.0)
    pace.check(request, 6.0)
    pace.check(request, None)


def test_only_what_is_due_before_it_counts() -> None:
    pace, now = paced(LEAST_STARTS, each_s=1.0, n_waiting=10)
    pace.check(replace(make_request("new", "m", arrival_s=now[0]), n_resumed=0, arrival_s=99.0), 0.001)


@pytest.mark.parametrize("n_starts", [0, LEAST_STARTS - 1])
def test_nothing_is_refused_without_evidence(n_starts: int) -> None:
    pace, now = paced(n_starts, each_s=1.0, n_waiting=1000)
    pace.check(make_request("new", "m", arrival_s=now[0]), 0.001)


def test_what_was_measured_before_the_queue_was_empty_or_a_minute_ago_is_no_evidence() -> None:
    pace, now = paced(LEAST_STARTS, each_s=1.0, n_waiting=1)
    pace.left(RequestId(f"r{LEAST_STARTS}"))
    pace.arrived(make_request("other", "m", arrival_s=100.0))
    pace.check(make_request("new", "m", arrival_s=now[0]), 0.001)
    pace, now = paced(LEAST_STARTS, each_s=1.0, n_waiting=10)
    now[0] += 61.0
    pace.check(make_request("new", "m", arrival_s=now[0]), 0.001)


def test_a_queue_that_is_never_empty_is_remembered_in_bounded_room() -> None:
    pace, now = paced(3 * MOST_STARTS, each_s=0.01, n_waiting=500)
    assert len(pace._starts_s) == MOST_STARTS
    with pytest.raises(DeadlineExceeded, match=r"takes about 5 s"):
        pace.check(make_request("new", "m", arrival_s=now[0]), 1.0)


async def start_all(front: Front, hub: ScriptedNodes, streams: list[Call], now: list[float]) -> None:
    for stream in streams:
        now[0] += 1.0
        hub.post(PhaseChanged(stream.id, RequestPhase.RUNNING))
        await until(lambda stream=stream: stream.choices[0].phase is RequestPhase.RUNNING)  # type: ignore[misc]


async def test_the_front_refuses_by_the_pace_of_its_own_queue() -> None:
    hub, now = ScriptedNodes(), [100.0]
    async with started(hub, clock=lambda: now[0]) as front:
        calls = [front.open(ask(ttft_s=1.0)) for _ in range(LEAST_STARTS + 10)]
        streams = [await call.__aenter__() for call in calls]
        await start_all(front, hub, streams[:LEAST_STARTS], now)
        with pytest.raises(DeadlineExceeded, match="10 requests are ahead of this one"):
            await events_of(front, ask(timeout_s=4.0))
        assert front.n_live == LEAST_STARTS + 10
        for call in calls[::-1]:
            await call.__aexit__(None, None, None)
        await until(lambda: front.n_live == 0)
        async with front.open(ask(timeout_s=4.0)):
            pass


async def test_all_choices_of_a_call_end_together() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front:
        async with front.open(ask(n=3, request_id="it")) as stream:
            front.cancel("it")
            with pytest.raises(Ended, match="request it was cancelled by its id"):
                await rest(stream)
        async with front.open(ask(n=3, timeout_s=0.5)) as stream:
            with pytest.raises(DeadlineExceeded):
                await rest(stream)
        await until(lambda: front.n_live == 0)
