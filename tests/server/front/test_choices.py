"""Several choices of one prompt: one call, one stream, and as many requests to all other parts."""

import re
from collections.abc import Iterable

import pytest

from tests.server.front.asking import ask, events_of, started, tokens, until
from tokenmux.core.errors import AlreadyExists, Ended, ErrorCode, InvalidRequest, NotServable, Overloaded
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.request import FinishReason
from tokenmux.core.sampling import choice_seed
from tokenmux.messages.commands import Cancel, Pause, Resume, Submit
from tokenmux.messages.reports import Broken, Finished
from tokenmux.server.front.generation import FinishInfo, PromptInfo, StreamEvent, TokenDelta
from tokenmux.server.front.limits import Limits
from tokenmux.testing.scripted_node import ScriptedNodes


def texts_of(events: Iterable[StreamEvent], n: int) -> list[str]:
    texts = [""] * n
    for event in events:
        if isinstance(event, TokenDelta):
            texts[event.choice] += event.text
    return texts


async def submitted(hub: ScriptedNodes, n: int) -> list[Submit]:
    return [await hub.next(Submit) for _ in range(n)]


async def test_each_choice_is_a_request_with_a_seed_of_its_own() -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        events = await events_of(front, ask(n=3, max_tokens=4, seed=7, echo=True, request_id="mine"))
        submits = await submitted(hub, 3)
        assert front.n_live == 0
    first = submits[0].request.id
    assert [submit.request.id for submit in submits] == [first, f"{first}#1", f"{first}#2"]
    seeds = [7, choice_seed(7, 1), choice_seed(7, 2)]
    assert [submit.sampling.seed for submit in submits] == seeds
    assert {(submit.prompt, submit.request.max_tokens) for submit in submits} == {(tuple(b"abc"), 4)}
    assert [event for event in events if isinstance(event, PromptInfo)] == [
        PromptInfo("mine", "letters", n_prompt=3, max_tokens=4, seed=7, prompt=tuple(b"abc"))
    ]
    assert texts_of(events, 3) == ["abcdefg"] * 3
    ends = [event for event in events if isinstance(event, FinishInfo)]
    assert sorted((end.choice, end.seed, end.n_completion) for end in ends) == [
        (choice, seed, 4) for choice, seed in enumerate(seeds)
    ]
    assert isinstance(events[-1], FinishInfo)


async def test_a_choice_has_the_draws_of_a_request_with_its_seed() -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        await events_of(front, ask(n=3, temperature=1.0, seed=7))
        await events_of(front, ask(temperature=1.0, seed=choice_seed(7, 2)))
        *_, third, alone = await submitted(hub, 4)
    assert third.sampling == alone.sampling


async def test_choices_end_one_by_one_and_the_stream_with_the_last() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask(n=2, stop_strings=("#",))) as stream:
        first, second = (submit.request.id for submit in await submitted(hub, 2))
        hub.post(PhaseChanged(second, RequestPhase.QUEUED, position=9))
        hub.post(PhaseChanged(first, RequestPhase.RUNNING))
        hub.post(tokens(first, 0, "a"))
        hub.post(tokens(second, 0, "b"))
        hub.post(tokens(first, 1, "c#"))
        assert await hub.next(Cancel) == Cancel(first, FinishReason.STOP)
        hub.post(tokens(second, 1, "d"))
        hub.post(Finished(second, FinishReason.LENGTH, 100.0))
        await until(lambda: stream.closed)
        events = [event async for event in stream]
    assert texts_of(events, 2) == ["ac", "bd"]
    assert [event.phase for event in events if isinstance(event, PhaseChanged)] == [RequestPhase.RUNNING]
    ends = [(event.choice, event.reason) for event in events if isinstance(event, FinishInfo)]
    assert ends == [(0, FinishReason.STOP), (1, FinishReason.LENGTH)]
    # What is unread of a choice is one delta, however many tokens came.
    assert len([event for event in events if isinstance(event, TokenDelta)]) == 2


@pytest.mark.parametrize("n", [0, -1, 17, 2**31])
async def test_a_number_of_choices_beyond_the_limit_is_refused(n: int) -> None:
    async with started(ScriptedNodes(auto=True)) as front:
        with pytest.raises(InvalidRequest, match=re.escape(f"n {n} is out of range: use 1 to 16 choices")):
            await events_of(front, ask(n=n))


async def test_every_choice_takes_a_place() -> None:
    hub = ScriptedNodes()
    async with started(hub, limits=Limits(max_requests=4)) as front, front.open(ask(n=3)) as stream:
        assert front.n_live == 3
        with pytest.raises(Overloaded, match="the queue of 4 requests has no room for 2 more"):
            await events_of(front, ask(n=2))
        async with front.open(ask()):
            assert front.n_live == 4
        assert not stream.closed


async def test_leaving_cancels_all_choices_whose_one_id_is_taken_while_the_call_lasts() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front:
        async with front.open(ask(n=3, request_id="mine")) as stream:
            ids = [submit.request.id for submit in await submitted(hub, 3)]
            hub.post(Finished(ids[0], FinishReason.STOP, 100.0))
            hub.post(Finished(ids[1], FinishReason.STOP, 100.0))
            await until(lambda: front.n_live == 1)
            with pytest.raises(AlreadyExists, match="request_id mine belongs to a request that is live"):
                await events_of(front, ask(request_id="mine"))
            assert not stream.closed
        assert await hub.next(Cancel) == Cancel(ids[2])
        await until(lambda: front.n_live == 0)
        async with front.open(ask(request_id="mine")):
            pass


async def test_a_choice_that_fails_ends_the_call_with_its_reason_and_the_others() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask(n=3)) as stream:
        ids = [submit.request.id for submit in await submitted(hub, 3)]
        hub.post(tokens(ids[0], 0, "a"))
        hub.post(Finished(ids[1], FinishReason.FAILED, 100.0, "it is given up", ErrorCode.NOT_SERVABLE))
        assert [await hub.next(Cancel), await hub.next(Cancel)] == [Cancel(ids[0]), Cancel(ids[2])]
        with pytest.raises(NotServable, match=r"request \w+ failed: it is given up"):
            [event async for event in stream]
        await until(lambda: front.n_live == 0)


async def test_a_reader_that_stops_pauses_all_choices_that_have_not_ended() -> None:
    hub = ScriptedNodes()
    async with started(hub, limits=Limits(buffer_tokens=4)) as front, front.open(ask(n=3)) as stream:
        ids = [submit.request.id for submit in await submitted(hub, 3)]
        hub.post(tokens(ids[0], 0, "a"))
        hub.post(Finished(ids[0], FinishReason.LENGTH, 100.0))
        hub.post(tokens(ids[1], 0, "bc"))
        hub.post(tokens(ids[2], 0, "d"))
        assert [await hub.next(Pause), await hub.next(Pause)] == [Pause(ids[1]), Pause(ids[2])]
        hub.post(Broken("killed"))
        # The next node hears of both, and of their pauses.
        again = await hub.next(Submit)
        assert (again.request.id, again.delivered) == (ids[1], tuple(b"bc"))
        assert await hub.next(Pause) == Pause(ids[1])
        events: list[StreamEvent] = []
        while sum(len(e.token_ids) for e in events if isinstance(e, TokenDelta)) < 2:
            events.append(await anext(stream))
        assert [await hub.next(Resume), await hub.next(Resume)] == [Resume(ids[1]), Resume(ids[2])]


async def test_choices_that_are_never_read_all_end() -> None:
    hub = ScriptedNodes()
    limits = Limits(buffer_tokens=2, unread_s=0.01)
    async with started(hub, limits=limits) as front, front.open(ask(n=2)) as stream:
        ids = [submit.request.id for submit in await submitted(hub, 2)]
        hub.post(tokens(ids[1], 0, "abc"))
        assert {(await hub.next(Cancel)).request, (await hub.next(Cancel)).request} == set(ids)
        with pytest.raises(Ended, match="left more than 2 tokens unread"):
            await anext(stream)
