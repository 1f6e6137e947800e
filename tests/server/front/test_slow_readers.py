"""What happens when a client stops reading."""

import pytest

from tests.server.front.asking import ask, started, tokens, until
from tokenmux.core.errors import (
    Ended,
)
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.record import RequestHistory
from tokenmux.core.request import FinishReason
from tokenmux.messages.commands import Cancel, Pause, Resume, Submit
from tokenmux.messages.reports import Broken, Finished
from tokenmux.server.front.generation import (
    FinishInfo,
    PromptInfo,
    TokenDelta,
)
from tokenmux.server.front.limits import Limits
from tokenmux.testing.scripted_node import (
    ScriptedNodes,
)


async def test_an_unread_buffer_pauses_the_request_and_reading_resumes_it() -> None:
    hub = ScriptedNodes()
    async with started(hub, limits=Limits(buffer_tokens=4)) as front, front.open(ask()) as stream:
        hub.post(tokens(stream.id, 0, "abc"))
        hub.post(tokens(stream.id, 3, "d"))
        assert await hub.next(Pause) == Pause(stream.id)
        assert isinstance(await anext(stream), PromptInfo)
        assert await anext(stream) == TokenDelta(0, tuple(b"abcd"), "abcd")
        assert await hub.next(Resume) == Resume(stream.id)


async def test_deadlines_stand_still_while_the_client_does_not_read() -> None:
    hub, now = ScriptedNodes(), [100.0]
    async with (
        started(hub, limits=Limits(buffer_tokens=1), clock=lambda: now[0]) as front,
        front.open(ask(ttft_s=1.0, tpot_s=1.0)) as stream,
    ):
        hub.post(tokens(stream.id, 0, "a", at_s=100.5))
        await hub.next(Pause)
        now[0] = 150.0
        await anext(stream)
        await anext(stream)
        await hub.next(Resume)
        hub.post(tokens(stream.id, 1, "b", at_s=151.0))
        hub.post(Finished(stream.id, FinishReason.LENGTH, 151.0))
        events = [event async for event in stream]
    assert isinstance(events[-1], FinishInfo)
    assert events[-1].n_on_time == 2


async def test_the_next_node_is_told_of_pauses_and_of_tokens_that_were_on_time() -> None:
    """Otherwise deadlines would be back where they were, and the tokens would count as late."""
    hub, now = ScriptedNodes(), [100.0]
    async with (
        started(hub, limits=Limits(buffer_tokens=1), clock=lambda: now[0]) as front,
        front.open(ask(ttft_s=1.0, tpot_s=1.0)) as stream,
    ):
        hub.post(tokens(stream.id, 0, "a", at_s=100.5))
        await hub.next(Pause)
        now[0] = 150.0
        hub.post(Broken("killed"))
        again = await hub.next(Submit)
        await hub.next(Pause)
    assert again.history == RequestHistory(1, 100.5, 100.5, 50.0)


async def test_a_client_that_never_reads_is_ended() -> None:
    hub = ScriptedNodes()
    limits = Limits(buffer_tokens=2, unread_s=0.01)
    async with started(hub, limits=limits) as front, front.open(ask()) as stream:
        hub.post(tokens(stream.id, 0, "abc"))
        assert await hub.next(Cancel) == Cancel(stream.id)
        with pytest.raises(Ended, match="left more than 2 tokens unread"):
            await anext(stream)


async def test_states_that_were_not_read_are_replaced_by_newer_ones() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask()) as stream:
        hub.post(PhaseChanged(stream.id, RequestPhase.QUEUED, position=3))
        hub.post(PhaseChanged(stream.id, RequestPhase.LOADING, progress=0.5))
        hub.post(tokens(stream.id, 0, "a"))
        hub.post(Finished(stream.id, FinishReason.LENGTH, 100.0))
        await until(lambda: stream.closed)
        events = [event async for event in stream]
    assert [type(event) for event in events] == [PromptInfo, PhaseChanged, TokenDelta, FinishInfo]
    assert events[1] == PhaseChanged(stream.id, RequestPhase.LOADING, progress=0.5)
