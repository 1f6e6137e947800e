"""What a new node is told, and what the death of the last one costs: time, and no tokens."""

import threading
from collections.abc import Callable

import pytest

from tests.server.front.asking import ask, events_of, started, text_of, tokens, tokens_of, until
from tests.server.harness import make_front
from tests.server.scripted_models import END, FakeEntry, facts
from tokenmux.core.errors import (
    NotServable,
)
from tokenmux.core.facts import ModelId
from tokenmux.core.request import FinishReason
from tokenmux.messages.commands import Pause, Pin, Register, Submit
from tokenmux.messages.reports import Broken, Finished, Tokens
from tokenmux.messages.setups import PresentDevices
from tokenmux.server.front.generation import (
    FinishInfo,
    Text,
)
from tokenmux.server.front.limits import Limits
from tokenmux.testing.scripted_node import (
    ScriptedNodes,
    make_reports,
    scripted_output,
)


async def test_pins_are_judged_after_all_models_and_one_that_is_refused_is_not_shown_as_in_force() -> None:
    """Half of the configured pins were in force, the list showed all, and what they left no room for was
    served and always refused."""
    hub = ScriptedNodes(auto=True)
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


async def test_a_model_that_the_node_does_not_take_is_refused_with_its_reason() -> None:
    hub = ScriptedNodes(auto=True)
    hub.refuses["letters"] = "its image is cut off"
    async with started(hub) as front:
        with pytest.raises(NotServable, match="its image is cut off"):
            await events_of(front, ask())


async def test_a_dead_node_costs_time_and_no_tokens() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask(max_tokens=6)) as stream:
        first = await hub.next(Submit)
        hub.post(tokens(stream.id, 0, "def"))
        hub.post(Broken("killed"))
        assert (await hub.next(Register)).facts.id == "letters"
        again = await hub.next(Submit)
        assert again.delivered == tuple(b"def")
        assert (again.request, again.prompt, again.sampling) == (first.request, first.prompt, first.sampling)
        hub.node.run(again)
        events = [event async for event in stream]
        assert (len(hub.nodes), front.node.n_restarts, hub.nodes[0].closed) == (2, 1, True)
    assert text_of(events) == "defghi"
    assert tokens_of(events) == scripted_output(first)


async def test_tokens_that_a_new_node_repeats_are_not_delivered_twice() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask(max_tokens=6)) as stream:
        hub.post(tokens(stream.id, 0, "def"))
        hub.post(tokens(stream.id, 1, "efgh"))
        hub.post(Finished(stream.id, FinishReason.LENGTH, 100.0))
        assert text_of([event async for event in stream]) == "defgh"


async def test_what_a_dead_node_still_says_is_dropped() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask(max_tokens=6)) as stream:
        await hub.next(Submit)
        dead = hub.node
        dead.post(Broken("killed"))
        dead.post(tokens(stream.id, 0, "no"))
        again = await hub.next(Submit)
        dead.post(tokens(stream.id, 0, "no"))
        assert again.delivered == ()
        hub.node.run(again)
        assert text_of([event async for event in stream]) == "defghi"


async def test_a_paused_request_is_paused_again_and_a_pinned_model_pinned() -> None:
    hub = ScriptedNodes()
    async with started(hub, limits=Limits(buffer_tokens=1)) as front, front.open(ask()) as stream:
        front.models.find("letters").pinned = True
        hub.post(tokens(stream.id, 0, "d"))
        await hub.next(Pause)
        hub.post(Broken("killed"))
        assert await hub.next(Pin) == Pin(ModelId("letters"), True)
        assert (await hub.next(Submit)).request.id == stream.id
        assert await hub.next(Pause) == Pause(stream.id)


async def test_a_request_that_was_complete_but_for_the_word_is_completed() -> None:
    """The last token had come, `Finished` had not: a new node would have nothing to compute."""
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask(max_tokens=3)) as full, front.open(ask()) as stopped:
        hub.post(tokens(full.id, 0, "def"))
        hub.post(Tokens(stopped.id, 0, (ord("d"), END), 100.0))
        hub.post(Broken("killed"))
        ends = [[event async for event in stream][-1] for stream in (full, stopped)]
        await until(lambda: front.node.running and front.node.n_restarts == 1)
        assert front.n_live == 0
    assert [end.reason for end in ends if isinstance(end, FinishInfo)] == [
        FinishReason.LENGTH,
        FinishReason.STOP,
    ]


async def test_a_cancelled_request_is_not_given_to_the_next_node() -> None:
    hub = ScriptedNodes()
    hub.answer_cancels = False
    async with started(hub) as front:
        async with front.open(ask()):
            await hub.next(Submit)
        hub.post(Broken("killed"))
        await until(lambda: front.node.running and front.node.n_restarts == 1)
        assert not [sent for sent in hub.unread() if isinstance(sent, Submit)]
        assert front.n_live == 0


async def test_requests_that_come_while_there_is_no_node_wait_for_the_next() -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        hub.post(Broken("killed"))
        await until(lambda: not front.node.running)
        assert text_of(await events_of(front, ask())) == "defghijk"


async def test_a_node_that_cannot_be_sent_to_is_replaced() -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        hub.node.dead = True
        assert text_of(await events_of(front, ask())) == "defghijk"
        assert front.node.n_restarts == 1


async def test_a_first_node_that_breaks_at_once_is_replaced_before_the_start_returns() -> None:
    hub = ScriptedNodes(auto=True)
    make = hub.factory

    def fragile(post: Callable[..., None], *, devices: PresentDevices) -> object:
        node = make(post, devices=devices)
        if len(hub.nodes) == 1:
            node.send = lambda message: None  # type: ignore[method-assign]
            post(make_reports(Broken("out of memory")))
        return node

    hub.factory = fragile  # type: ignore[assignment,method-assign]
    async with started(hub) as front:
        assert len(hub.nodes) == 2
        assert text_of(await events_of(front, ask())) == "defghijk"


async def test_messages_from_another_thread_arrive_in_order() -> None:
    hub = ScriptedNodes()
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
