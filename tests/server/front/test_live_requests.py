"""What a request gets, from the first event of its stream to the last."""

from collections.abc import Sequence

import pytest

from tests.server.front.asking import ask, events_of, started, text_of, tokens, tokens_of, until
from tests.server.scripted_models import END, LetterDetokenizer, facts
from tokenmux.core.errors import (
    Ended,
    InternalError,
    NotServable,
)
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.request import FinishReason, ServiceLevel
from tokenmux.messages.commands import Cancel, Order, Submit
from tokenmux.messages.reports import Finished, Tokens
from tokenmux.server.front.generation import (
    FinishInfo,
    PromptInfo,
)
from tokenmux.testing.scripted_node import (
    ScriptedNodes,
    scripted_output,
)


async def test_a_stream_begins_with_the_prompt_and_ends_with_the_finish() -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        events = await events_of(front, ask(max_tokens=5))
        submit = await hub.next(Submit)
    assert submit.prompt == tuple(b"abc")
    assert submit.stop_token_ids == {END}
    assert submit.request.service == ServiceLevel()
    assert events[0] == PromptInfo(
        submit.request.id.partition("/")[0],
        "letters",
        n_prompt=3,
        max_tokens=5,
        seed=1234,
        prompt=submit.prompt,
    )
    assert events[-1] == FinishInfo(
        FinishReason.LENGTH, None, None, 3, 5, n_on_time=5, queue_s=0, ttft_s=0, total_s=0, seed=1234
    )
    assert tokens_of(events) == scripted_output(submit)
    assert text_of(events) == "defgh"
    assert front.n_live == 0


async def test_an_end_token_is_delivered_as_an_id_but_not_as_text() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask()) as stream:
        hub.post(Tokens(stream.id, 0, (ord("x"), END), 100.0))
        hub.post(Finished(stream.id, FinishReason.STOP, 100.0))
        events = [event async for event in stream]
    assert (tokens_of(events), text_of(events)) == ([ord("x"), END], "x")
    assert isinstance(events[-1], FinishInfo)
    assert (events[-1].reason, events[-1].stop_token_id) == (FinishReason.STOP, END)


async def test_a_stop_string_over_two_tokens_ends_the_request_and_is_no_text() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask(stop_strings=("##",))) as stream:
        hub.post(tokens(stream.id, 0, "ok#"))
        hub.post(tokens(stream.id, 3, "#never"))
        events = [event async for event in stream]
        cancel = await hub.next(Cancel)
    assert cancel == Cancel(stream.id, FinishReason.STOP)
    assert text_of(events) == "ok"
    assert tokens_of(events) == list(b"ok##")
    assert isinstance(events[-1], FinishInfo)
    assert (events[-1].stop_string, events[-1].n_completion) == ("##", 4)


async def test_text_held_back_for_a_stop_string_comes_with_the_end() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask(stop_strings=("##",))) as stream:
        hub.post(tokens(stream.id, 0, "ok#"))
        hub.post(Finished(stream.id, FinishReason.LENGTH, 100.0))
        events = [event async for event in stream]
    assert text_of(events) == "ok#"


async def test_times_are_seconds_since_arrival_and_lateness_is_counted() -> None:
    hub, now = ScriptedNodes(), [100.0]
    async with started(hub, clock=lambda: now[0]) as front, front.open(ask(ttft_s=2.0, tpot_s=1.0)) as stream:
        now[0] = 101.0
        hub.post(PhaseChanged(stream.id, RequestPhase.RUNNING))
        hub.post(tokens(stream.id, 0, "a", at_s=101.5))
        hub.post(tokens(stream.id, 1, "b", at_s=103.5))
        hub.post(Finished(stream.id, FinishReason.LENGTH, 103.5))
        events = [event async for event in stream]
    end = events[-1]
    assert isinstance(end, FinishInfo)
    assert (end.queue_s, end.ttft_s, end.total_s, end.n_on_time) == (1.0, 1.5, 3.5, 1)


async def test_a_fault_in_one_requests_output_reaches_no_other(caplog: pytest.LogCaptureFixture) -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask()) as bad, front.open(ask()) as good:
        hub.post(tokens(bad.id, 5, "gap"))
        hub.post(tokens(good.id, 0, "fine"))
        hub.post(Finished(good.id, FinishReason.LENGTH, 100.0))
        with pytest.raises(InternalError, match="log says why"):
            async for _ in bad:
                pass
        assert text_of([event async for event in good]) == "fine"
        assert await hub.next(Cancel) == Cancel(bad.id)
    assert "only 0 before" in caplog.text


async def test_a_decoder_that_fails_ends_its_request_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = LetterDetokenizer.push

    def push(self: LetterDetokenizer, token_ids: Sequence[int]) -> str:
        if ord("!") in token_ids:
            raise NotServable("the model's decoder fails on its output (index out of bounds)")
        return plain(self, token_ids)

    monkeypatch.setattr(LetterDetokenizer, "push", push)
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask()) as bad, front.open(ask()) as good:
        hub.post(tokens(bad.id, 0, "a!"))
        hub.post(tokens(good.id, 0, "fine"))
        hub.post(Finished(good.id, FinishReason.LENGTH, 100.0))
        with pytest.raises(NotServable, match=r"failed: the model's decoder fails .*index out of bounds"):
            async for _ in bad:
                pass
        assert text_of([event async for event in good]) == "fine"
        assert await hub.next(Cancel) == Cancel(bad.id)


async def test_a_request_that_the_process_failed_says_why() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask()) as stream:
        hub.post(Finished(stream.id, FinishReason.FAILED, 100.0, "its model was removed"))
        with pytest.raises(Ended, match="its model was removed"):
            async for _ in stream:
                pass


async def test_leaving_cancels_and_the_place_is_kept_until_the_node_confirms() -> None:
    hub = ScriptedNodes()
    hub.answer_cancels = False
    async with started(hub) as front:
        async with front.open(ask()) as stream:
            pass
        assert await hub.next(Cancel) == Cancel(stream.id)
        assert (front.n_live, front.node.requests.n_of(facts("letters").id)) == (1, 0)
        hub.post(Finished(stream.id, FinishReason.CANCELLED, 100.0))
        await until(lambda: front.n_live == 0)


async def test_a_request_that_cannot_be_sent_is_refused_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would hold its place for ever, since no node says that it ended."""
    hub = ScriptedNodes()
    async with started(hub) as front:
        send = hub.node.send

        def fails_once(order: Order) -> None:
            monkeypatch.setattr(hub.node, "send", send)
            raise NotServable("it has too many bits")

        monkeypatch.setattr(hub.node, "send", fails_once)
        with pytest.raises(NotServable, match="too many bits"):
            await events_of(front, ask(n=2))
        assert front.n_live == 0
        assert await hub.next(Cancel)
        async with front.open(ask()) as stream:
            hub.post(Finished(stream.id, FinishReason.LENGTH, 100.0))
            assert [event async for event in stream]
