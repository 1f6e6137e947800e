"""The front against a scripted worker: admission, delivery, flow control, cancellation, the death of a
worker."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.server.harness import (
    END,
    PATIENCE_S,
    VOCAB,
    FakeEntry,
    LetterTokenizer,
    facts,
    make_front,
    worker_status,
)
from tokenmux.core.errors import (
    BadCheckpoint,
    DoesNotFit,
    Ended,
    InternalError,
    InvalidRequest,
    NotFound,
    NotServable,
    Overloaded,
    TokenmuxError,
    Unavailable,
)
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.request import FinishReason, RequestId, ServiceLevel
from tokenmux.messages.commands import Cancel, Pause, Pin, Register, Resume, Submit
from tokenmux.messages.reports import Broken, Finished, Tokens
from tokenmux.server.front.front import Front
from tokenmux.server.front.generation import (
    Ask,
    Chat,
    ChatMessage,
    FinishInfo,
    PromptInfo,
    StreamEvent,
    Text,
    TokenDelta,
    TokenIds,
)
from tokenmux.server.front.limits import Limits
from tokenmux.server.front.tenants import Weights
from tokenmux.testing.scripted_worker import (
    ScriptedWorkers,
    make_reports,
    scripted_output,
)


@asynccontextmanager
async def started(
    hub: ScriptedWorkers,
    *entries: FakeEntry,
    limits: Limits | None = None,
    weights: Weights | None = None,
    clock: Callable[[], float] = lambda: 100.0,
) -> AsyncIterator[Front]:
    front, _ = make_front(hub, *entries, limits=limits, weights=weights, clock=clock)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await front.start()
            yield front
    finally:
        await front.close()


def ask(text: str = "abc", **changes: object) -> Ask:
    return Ask(**{"model": "letters", "prompt": Text(text), **changes})  # type: ignore[arg-type]


async def events_of(front: Front, question: Ask) -> list[StreamEvent]:
    async with front.open(question) as stream:
        return [event async for event in stream]


def text_of(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenDelta))


def tokens_of(events: list[StreamEvent]) -> list[int]:
    return [i for event in events if isinstance(event, TokenDelta) for i in event.token_ids]


def tokens(request: RequestId, index: int, text: str, at_s: float = 100.0) -> Tokens:
    return Tokens(request, index, tuple(map(ord, text)), at_s)


# What a request gets


async def test_a_stream_begins_with_the_prompt_and_ends_with_the_finish() -> None:
    hub = ScriptedWorkers(auto=True)
    async with started(hub) as front:
        events = await events_of(front, ask(max_tokens=5))
        submit = await hub.next(Submit)
    assert submit.prompt == tuple(b"abc")
    assert submit.stop_token_ids == {END}
    assert submit.request.service == ServiceLevel()
    assert events[0] == PromptInfo(submit.request.id, "letters", n_prompt=3, max_tokens=5, seed=1234)
    assert events[-1] == FinishInfo(
        FinishReason.LENGTH, None, None, 3, 5, n_on_time=5, queue_s=0, ttft_s=0, total_s=0, seed=1234
    )
    assert tokens_of(events) == scripted_output(submit)
    assert text_of(events) == "defgh"
    assert front.n_live == 0


async def test_everything_that_is_asked_reaches_the_worker() -> None:
    hub = ScriptedWorkers(auto=True)
    question = ask(
        max_tokens=4, min_tokens=2, temperature=0.5, top_k=3, top_p=0.25, seed=7, stop_token_ids=(9,),
        ttft_s=1.0, tpot_s=0.5, tenant="team", weight=2.0,
    )  # fmt: skip
    async with started(hub) as front:
        await events_of(front, question)
        submit = await hub.next(Submit)
    request, sampling = submit.request, submit.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.5, 3, 0.25, 7)
    assert (submit.min_tokens, submit.stop_token_ids) == (2, {END, 9})
    assert (request.n_prompt, request.max_tokens, request.arrival_s) == (3, 4, 100.0)
    assert (request.service, request.tenant, request.weight) == (ServiceLevel(1.0, 0.5), "team", 2.0)


async def test_chat_goes_through_the_template_and_token_ids_do_not() -> None:
    hub = ScriptedWorkers(auto=True)
    async with started(hub) as front:
        await events_of(front, ask(prompt=Chat((ChatMessage("user", "hi"),))))
        assert (await hub.next(Submit)).prompt == tuple(b"u:hi;")
        await events_of(front, ask(prompt=TokenIds((5, 6)), ignore_end_tokens=True))
        submit = await hub.next(Submit)
    assert submit.prompt == (5, 6)
    assert submit.stop_token_ids == frozenset()


async def test_an_end_token_is_delivered_as_an_id_but_not_as_text() -> None:
    hub = ScriptedWorkers()
    async with started(hub) as front, front.open(ask()) as stream:
        hub.post(Tokens(stream.id, 0, (ord("x"), END), 100.0))
        hub.post(Finished(stream.id, FinishReason.STOP, 100.0))
        events = [event async for event in stream]
    assert (tokens_of(events), text_of(events)) == ([ord("x"), END], "x")
    assert isinstance(events[-1], FinishInfo)
    assert (events[-1].reason, events[-1].stop_token_id) == (FinishReason.STOP, END)


async def test_a_stop_string_over_two_tokens_ends_the_request_and_is_no_text() -> None:
    hub = ScriptedWorkers()
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
    hub = ScriptedWorkers()
    async with started(hub) as front, front.open(ask(stop_strings=("##",))) as stream:
        hub.post(tokens(stream.id, 0, "ok#"))
        hub.post(Finished(stream.id, FinishReason.LENGTH, 100.0))
        events = [event async for event in stream]
    assert text_of(events) == "ok#"


async def test_times_are_seconds_since_arrival_and_lateness_is_counted() -> None:
    hub, now = ScriptedWorkers(), [100.0]
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


async def test_a_seed_is_drawn_once_and_told() -> None:
    hub = ScriptedWorkers(auto=True)
    async with started(hub) as front:
        events = await events_of(front, ask(temperature=1.0))
        submit = await hub.next(Submit)
    assert submit.sampling.seed == 1234
    assert isinstance(events[0], PromptInfo)
    assert events[0].seed == 1234


# What a wrong request gets

WRONG: list[tuple[dict[str, object], type[TokenmuxError], str]] = [
    ({"model": "leters"}, NotFound, "did you mean 'letters'"),
    ({"model": ""}, NotFound, "no model was named"),
    ({"prompt": Text("")}, InvalidRequest, "empty"),
    ({"prompt": TokenIds(())}, InvalidRequest, "no token ids"),
    ({"prompt": TokenIds((1, VOCAB))}, InvalidRequest,
     "256 at index 1 is out of range: letters has token ids 0 to 255"),
    ({"prompt": Text("\u0101")}, InvalidRequest, "out of range"),
    ({"prompt": Chat(())}, InvalidRequest, "no messages"),
    ({"prompt": Chat((ChatMessage("", "x"),))}, InvalidRequest, "no role"),
    ({"prompt": Text("x" * 64)}, InvalidRequest, "shorten the prompt to at most 63 tokens"),
    ({"max_tokens": 62}, InvalidRequest, "use max_tokens of at most 61"),
    ({"max_tokens": 60}, DoesNotFit, "ask for at most 60"),
    ({"max_tokens": 0}, InvalidRequest, "at least 1"),
    ({"max_tokens": -1}, InvalidRequest, "max_tokens -1 is out of range"),
    ({"min_tokens": -1}, InvalidRequest, "negative"),
    ({"max_tokens": 2, "min_tokens": 3}, InvalidRequest, "more than max_tokens 2"),
    ({"temperature": -0.1}, InvalidRequest, "temperature"),
    ({"temperature": float("nan")}, InvalidRequest, "temperature"),
    ({"temperature": float("inf")}, InvalidRequest, "temperature"),
    ({"top_k": -1}, InvalidRequest, "top_k"),
    ({"top_p": 0.0}, InvalidRequest, "top_p"),
    ({"top_p": 1.5}, InvalidRequest, "top_p"),
    ({"seed": -1}, InvalidRequest, "seed"),
    ({"seed": 2**64}, InvalidRequest, "seed"),
    ({"weight": 0.0}, InvalidRequest, "weight"),
    ({"weight": 101.0}, InvalidRequest, "weight"),
    ({"tenant": "t" * 65}, InvalidRequest, "tenant"),
    ({"ttft_s": 0.0}, InvalidRequest, "ttft_s"),
    ({"tpot_s": float("inf")}, InvalidRequest, "tpot_s"),
    ({"stop_strings": ("x",) * 17}, InvalidRequest, "at most 16"),
    ({"stop_strings": ("",)}, InvalidRequest, "empty"),
    ({"stop_strings": ("x" * 257,)}, InvalidRequest, "at most 256"),
    ({"stop_token_ids": (1,) * 65}, InvalidRequest, "at most 64"),
    ({"stop_token_ids": (300,)}, InvalidRequest, "stop token ids: 300"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "kind", "message"), WRONG, ids=lambda case: str(case)[:40])
async def test_wrong_input_is_refused_before_the_worker_hears_of_it(
    changes: dict[str, object], kind: type[TokenmuxError], message: str
) -> None:
    hub = ScriptedWorkers(auto=True)
    async with started(hub) as front:
        with pytest.raises(kind, match=message):
            await events_of(front, ask(**changes))
        assert not [sent for sent in hub.unread() if isinstance(sent, Submit)]
        assert front.n_live == 0
        assert text_of(await events_of(front, ask(max_tokens=2))) == "de"


async def test_chat_without_a_template_is_refused() -> None:
    hub = ScriptedWorkers(auto=True)
    plain = FakeEntry(facts("letters"), letters=LetterTokenizer(has_chat_template=False))
    async with started(hub, plain) as front:
        with pytest.raises(InvalidRequest, match="no chat template"):
            await events_of(front, ask(prompt=Chat((ChatMessage("user", "hi"),))))


async def test_a_full_queue_refuses_and_recovers() -> None:
    hub = ScriptedWorkers()
    async with started(hub, limits=Limits(max_requests=2)) as front:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(front.open(ask()))
            with pytest.raises(Overloaded, match=r"queue is full \(2 requests\)"):
                await events_of(front, ask())
        await until(lambda: front.n_live == 0)
        hub.auto = True
        assert text_of(await events_of(front, ask())) == "defghijk"


async def test_a_tenant_that_fills_the_queue_does_not_shut_out_another() -> None:
    hub = ScriptedWorkers()
    async with started(hub, limits=Limits(max_requests=16)) as front, AsyncExitStack() as stack:
        for _ in range(16):
            await stack.enter_async_context(front.open(ask(tenant="large")))
        with pytest.raises(Overloaded):
            await events_of(front, ask(tenant="large"))
        for _ in range(2):
            await stack.enter_async_context(front.open(ask(tenant="small")))
        with pytest.raises(Overloaded):
            await events_of(front, ask(tenant="small"))


async def test_the_operators_weights_reach_the_scheduler() -> None:
    hub = ScriptedWorkers(auto=True)
    weights = Weights({"team": 3.0}, {"letters": 4.0})
    async with started(hub, weights=weights) as front:
        await events_of(front, ask(tenant="team", weight=2.0))
        await events_of(front, ask())
        first, second = [(await hub.next(Submit)).request for _ in range(2)]
    assert (first.weight, first.tenant_weight) == (8.0, 3.0)
    assert (second.weight, second.tenant_weight) == (4.0, 1.0)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until what was posted has had its effect."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - a turn of the loop, no time; the conditions have no event
            await asyncio.sleep(0)


async def test_requests_in_the_tokenizer_count_for_the_queue() -> None:
    hub, gate = ScriptedWorkers(auto=True), threading.Event()
    slow = FakeEntry(facts("letters"), letters=LetterTokenizer(gate=lambda: gate.wait(PATIENCE_S) and None))
    async with started(hub, slow, limits=Limits(max_requests=1)) as front:
        first = asyncio.create_task(events_of(front, ask()))
        await until(lambda: front.n_live == 1)
        with pytest.raises(Overloaded):
            await events_of(front, ask())
        gate.set()
        assert text_of(await first) == "defghijk"


async def test_tokenizing_does_not_block_other_requests() -> None:
    hub, gate = ScriptedWorkers(auto=True), threading.Event()
    slow = FakeEntry(facts("slow"), letters=LetterTokenizer(gate=lambda: gate.wait(PATIENCE_S) and None))
    async with started(hub, slow, FakeEntry(facts("letters"))) as front:
        waiting = asyncio.create_task(events_of(front, ask(model="slow")))
        assert text_of(await events_of(front, ask())) == "defghijk"
        assert not waiting.done()
        gate.set()
        assert text_of(await waiting) == "defghijk"


async def test_a_model_that_does_not_fit_is_refused_and_the_others_are_served() -> None:
    hub = ScriptedWorkers(auto=True)
    async with started(hub, FakeEntry(facts("huge", n_bytes=10**6)), FakeEntry(facts("letters"))) as front:
        with pytest.raises(DoesNotFit, match=r"raise device\.arena"):
            await events_of(front, ask(model="huge"))
        assert text_of(await events_of(front, ask())) == "defghijk"
        assert (await hub.next(Register)).facts.id == "letters"


async def test_a_damaged_entry_is_listed_with_its_reason_and_the_others_are_served() -> None:
    hub = ScriptedWorkers(auto=True)
    async with started(hub, FakeEntry(facts("bad")), FakeEntry(facts("letters"))) as front:
        assert {served.name: str(served.refusal or "") for served in front.models} == {
            "bad": "bad: the manifest is damaged",
            "letters": "",
        }
        with pytest.raises(BadCheckpoint, match="manifest is damaged"):
            async with front.open(Ask("bad", Text("a"))):
                pass
        async with front.open(Ask("letters", Text("a"))) as live:
            assert live.model == "letters"


async def test_a_device_too_small_for_any_model_refuses_to_start() -> None:
    front, _ = make_front(ScriptedWorkers(), FakeEntry(facts("huge", n_bytes=10**6)))
    with pytest.raises(DoesNotFit, match="no model of the catalogue fits the device"):
        await front.start()
    await front.close()


async def test_pins_from_the_start_count_for_what_fits_beside_them() -> None:
    hub = ScriptedWorkers(auto=True)
    front, _ = make_front(
        hub, FakeEntry(facts("large", 6_000)), FakeEntry(facts("letters", 6_000)), pinned=["large"]
    )
    await front.start()
    assert await hub.next(Pin) == Pin(facts("large").id, True)
    with pytest.raises(DoesNotFit):
        await events_of(front, ask())
    await front.close()


async def test_pins_are_judged_after_all_models_and_one_that_is_refused_is_not_shown_as_in_force() -> None:
    """Half of the configured pins were in force, the list showed all, and what they left no room for was
    served and always refused."""
    hub = ScriptedWorkers(auto=True)
    hub.refuses_pins["middle"] = "these pins would shut out another model"
    entries = [FakeEntry(facts(name, 4_000)) for name in ("large", "middle", "letters")]
    front, _ = make_front(hub, *entries, pinned=["large", "middle"])
    await front.start()
    sent = hub.unread()
    assert [type(message) for message in sent] == [Register] * 3 + [Pin] * 2
    assert {served.facts.id: served.pinned for served in front.models} == {
        "large": True, "letters": False, "middle": False,
    }  # fmt: skip
    assert text_of(await events_of(front, ask())) == "defghijk"
    await front.close()


async def test_a_model_that_the_worker_does_not_take_is_refused_with_its_reason() -> None:
    hub = ScriptedWorkers(auto=True)
    hub.refuses["letters"] = "its image is cut off"
    async with started(hub) as front:
        with pytest.raises(NotServable, match="its image is cut off"):
            await events_of(front, ask())


async def test_a_fault_in_one_requests_output_reaches_no_other(caplog: pytest.LogCaptureFixture) -> None:
    hub = ScriptedWorkers()
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


async def test_a_request_that_the_worker_failed_says_why() -> None:
    hub = ScriptedWorkers()
    async with started(hub) as front, front.open(ask()) as stream:
        hub.post(Finished(stream.id, FinishReason.FAILED, 100.0, "its model was removed"))
        with pytest.raises(Ended, match="its model was removed"):
            async for _ in stream:
                pass


# Cancelling and reading slowly


async def test_leaving_cancels_and_the_place_is_kept_until_the_worker_confirms() -> None:
    hub = ScriptedWorkers()
    hub.answer_cancels = False
    async with started(hub) as front:
        async with front.open(ask()) as stream:
            pass
        assert await hub.next(Cancel) == Cancel(stream.id)
        assert (front.n_live, front.worker.requests.n_of(facts("letters").id)) == (1, 0)
        hub.post(Finished(stream.id, FinishReason.CANCELLED, 100.0))
        await until(lambda: front.n_live == 0)


async def test_leaving_while_the_prompt_is_tokenized_submits_nothing() -> None:
    hub, gate = ScriptedWorkers(auto=True), threading.Event()
    slow = FakeEntry(facts("letters"), letters=LetterTokenizer(gate=lambda: gate.wait(PATIENCE_S) and None))
    async with started(hub, slow) as front:
        task = asyncio.create_task(events_of(front, ask()))
        await until(lambda: front.n_live == 1)
        task.cancel()
        await asyncio.wait([task])
        gate.set()
        assert front.n_live == 0
        assert not [sent for sent in hub.unread() if isinstance(sent, Submit | Cancel)]


async def test_an_unread_buffer_pauses_the_request_and_reading_resumes_it() -> None:
    hub = ScriptedWorkers()
    async with started(hub, limits=Limits(buffer_tokens=4)) as front, front.open(ask()) as stream:
        hub.post(tokens(stream.id, 0, "abc"))
        hub.post(tokens(stream.id, 3, "d"))
        assert await hub.next(Pause) == Pause(stream.id)
        assert isinstance(await anext(stream), PromptInfo)
        assert await anext(stream) == TokenDelta(0, tuple(b"abcd"), "abcd")
        assert await hub.next(Resume) == Resume(stream.id)


async def test_deadlines_stand_still_while_the_client_does_not_read() -> None:
    hub, now = ScriptedWorkers(), [100.0]
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


async def test_a_client_that_never_reads_is_ended() -> None:
    hub = ScriptedWorkers()
    limits = Limits(buffer_tokens=2, unread_s=0.01)
    async with started(hub, limits=limits) as front, front.open(ask()) as stream:
        hub.post(tokens(stream.id, 0, "abc"))
        assert await hub.next(Cancel) == Cancel(stream.id)
        with pytest.raises(Ended, match="left more than 2 tokens unread"):
            await anext(stream)


async def test_states_that_were_not_read_are_replaced_by_newer_ones() -> None:
    hub = ScriptedWorkers()
    async with started(hub) as front, front.open(ask()) as stream:
        hub.post(PhaseChanged(stream.id, RequestPhase.QUEUED, position=3))
        hub.post(PhaseChanged(stream.id, RequestPhase.LOADING, progress=0.5))
        hub.post(tokens(stream.id, 0, "a"))
        hub.post(Finished(stream.id, FinishReason.LENGTH, 100.0))
        await until(lambda: stream.closed)
        events = [event async for event in stream]
    assert [type(event) for event in events] == [PromptInfo, PhaseChanged, TokenDelta, FinishInfo]
    assert events[1] == PhaseChanged(stream.id, RequestPhase.LOADING, progress=0.5)


# The death of a worker


async def test_a_dead_worker_costs_time_and_no_tokens() -> None:
    hub = ScriptedWorkers()
    async with started(hub) as front, front.open(ask(max_tokens=6)) as stream:
        first = await hub.next(Submit)
        hub.post(tokens(stream.id, 0, "def"))
        hub.post(Broken("killed"))
        assert (await hub.next(Register)).facts.id == "letters"
        again = await hub.next(Submit)
        assert again.delivered == tuple(b"def")
        assert (again.request, again.prompt, again.sampling) == (first.request, first.prompt, first.sampling)
        hub.worker.run(again)
        events = [event async for event in stream]
        assert (len(hub.workers), front.worker.n_restarts, hub.workers[0].closed) == (2, 1, True)
    assert text_of(events) == "defghi"
    assert tokens_of(events) == scripted_output(first)


async def test_tokens_that_a_new_worker_repeats_are_not_delivered_twice() -> None:
    hub = ScriptedWorkers()
    async with started(hub) as front, front.open(ask(max_tokens=6)) as stream:
        hub.post(tokens(stream.id, 0, "def"))
        hub.post(tokens(stream.id, 1, "efgh"))
        hub.post(Finished(stream.id, FinishReason.LENGTH, 100.0))
        assert text_of([event async for event in stream]) == "defgh"


async def test_what_a_dead_worker_still_says_is_dropped() -> None:
    hub = ScriptedWorkers()
    async with started(hub) as front, front.open(ask(max_tokens=6)) as stream:
        await hub.next(Submit)
        dead = hub.worker
        dead.post(Broken("killed"))
        dead.post(tokens(stream.id, 0, "no"))
        again = await hub.next(Submit)
        dead.post(tokens(stream.id, 0, "no"))
        assert again.delivered == ()
        hub.worker.run(again)
        assert text_of([event async for event in stream]) == "defghi"


async def test_a_paused_request_is_paused_again_and_a_pinned_model_pinned() -> None:
    hub = ScriptedWorkers()
    async with started(hub, limits=Limits(buffer_tokens=1)) as front, front.open(ask()) as stream:
        front.models.find("letters").pinned = True
        hub.post(tokens(stream.id, 0, "d"))
        await hub.next(Pause)
        hub.post(Broken("killed"))
        assert await hub.next(Pin) == Pin(stream.model, True)
        assert (await hub.next(Submit)).request.id == stream.id
        assert await hub.next(Pause) == Pause(stream.id)


async def test_a_request_that_was_complete_but_for_the_word_is_completed() -> None:
    """The last token had come, `Finished` had not: a new worker would have nothing to compute."""
    hub = ScriptedWorkers()
    async with started(hub) as front, front.open(ask(max_tokens=3)) as full, front.open(ask()) as stopped:
        hub.post(tokens(full.id, 0, "def"))
        hub.post(Tokens(stopped.id, 0, (ord("d"), END), 100.0))
        hub.post(Broken("killed"))
        ends = [[event async for event in stream][-1] for stream in (full, stopped)]
        await until(lambda: front.worker.running and front.worker.n_restarts == 1)
        assert front.n_live == 0
    assert [end.reason for end in ends if isinstance(end, FinishInfo)] == [
        FinishReason.LENGTH,
        FinishReason.STOP,
    ]


async def test_a_cancelled_request_is_not_given_to_the_next_worker() -> None:
    hub = ScriptedWorkers()
    hub.answer_cancels = False
    async with started(hub) as front:
        async with front.open(ask()):
            await hub.next(Submit)
        hub.post(Broken("killed"))
        await until(lambda: front.worker.running and front.worker.n_restarts == 1)
        assert not [sent for sent in hub.unread() if isinstance(sent, Submit)]
        assert front.n_live == 0


async def test_requests_that_come_while_there_is_no_worker_wait_for_the_next() -> None:
    hub = ScriptedWorkers(auto=True)
    async with started(hub) as front:
        hub.post(Broken("killed"))
        await until(lambda: not front.worker.running)
        assert text_of(await events_of(front, ask())) == "defghijk"


async def test_a_worker_that_cannot_be_sent_to_is_replaced() -> None:
    hub = ScriptedWorkers(auto=True)
    async with started(hub) as front:
        hub.worker.dead = True
        assert text_of(await events_of(front, ask())) == "defghijk"
        assert front.worker.n_restarts == 1


async def test_a_first_worker_that_breaks_at_once_is_replaced_before_the_start_returns() -> None:
    hub = ScriptedWorkers(auto=True)
    make = hub.factory

    def fragile(post: Callable[..., None], *, arena_bytes: int) -> object:
        worker = make(post, arena_bytes=arena_bytes)
        if len(hub.workers) == 1:
            worker.send = lambda message: None  # type: ignore[method-assign]
            post(make_reports(Broken("out of memory")))
        return worker

    hub.factory = fragile  # type: ignore[assignment,method-assign]
    async with started(hub) as front:
        assert len(hub.workers) == 2
        assert text_of(await events_of(front, ask())) == "defghijk"


async def test_messages_from_another_thread_arrive_in_order() -> None:
    hub = ScriptedWorkers()
    async with started(hub) as front, front.open(ask(max_tokens=50, prompt=Text("a"))) as stream:
        text = "".join(chr(ord("0") + i) for i in range(50))

        def speak() -> None:
            for index, letter in enumerate(text):
                hub.post(tokens(stream.id, index, letter))
            hub.post(Finished(stream.id, FinishReason.LENGTH, 100.0))

        speaker = threading.Thread(target=speak)
        speaker.start()
        events = [event async for event in stream]
        speaker.join()
    assert text_of(events) == text


# Stopping


async def test_draining_refuses_new_requests_and_waits_for_the_others() -> None:
    hub = ScriptedWorkers()
    async with started(hub) as front:
        async with front.open(ask()) as stream:
            drained = asyncio.create_task(front.drain())
            await until(lambda: not front.ready)
            with pytest.raises(Unavailable, match="shutting down"):
                await events_of(front, ask())
            hub.worker.run(await hub.next(Submit))
            assert text_of([event async for event in stream]) == "defghijk"
            assert not drained.done()
        await drained


async def test_closing_ends_what_is_live_and_closes_the_worker() -> None:
    hub = ScriptedWorkers()
    front, _ = make_front(hub)
    await front.start()
    async with front.open(ask()) as stream:
        await front.close()
        with pytest.raises(Unavailable, match="stopped"):
            async for _ in stream:
                pass
    assert hub.worker.closed


async def test_the_latest_status_is_kept_and_watchers_are_woken() -> None:
    hub = ScriptedWorkers()
    async with started(hub) as front:
        version = front.changes.version
        hub.post(worker_status("letters"))
        assert await front.changes.after(version) > version
        assert front.worker.status == worker_status("letters")
