"""Which models of the store are served at the start, and why others are refused."""

import asyncio

import pytest

from tests.server.front.asking import ask, events_of, started, text_of
from tests.server.harness import make_front
from tests.server.scripted_models import FakeEntry, facts
from tokenmux.core.errors import (
    BadCheckpoint,
    DoesNotFit,
    ErrorCode,
    InUse,
)
from tokenmux.messages.commands import Pin, Register
from tokenmux.server.front.generation import (
    Ask,
    Text,
)
from tokenmux.testing.scripted_node import (
    ScriptedNodes,
)


async def test_a_model_that_does_not_fit_is_refused_and_the_others_are_served() -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub, FakeEntry(facts("huge", n_bytes=10**6)), FakeEntry(facts("letters"))) as front:
        with pytest.raises(DoesNotFit, match=r"raise device\.arena"):
            await events_of(front, ask(model="huge"))
        assert text_of(await events_of(front, ask())) == "defghijk"
        assert (await hub.next(Register)).facts.id == "letters"


async def test_a_damaged_entry_is_listed_with_its_reason_and_the_others_are_served() -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub, FakeEntry(facts("bad")), FakeEntry(facts("letters"))) as front:
        assert {served.name: str(served.refusal or "") for served in front.models} == {
            "bad": "bad: the manifest is damaged",
            "letters": "",
        }
        with pytest.raises(BadCheckpoint, match="manifest is damaged"):
            async with front.open(Ask("bad", Text("a"))):
                pass
        async with front.open(Ask("letters", Text("a"))) as live:
            assert (await anext(live)).model == "letters"


async def test_a_device_too_small_for_any_model_refuses_to_start() -> None:
    front, _ = make_front(ScriptedNodes(), FakeEntry(facts("huge", n_bytes=10**6)))
    with pytest.raises(DoesNotFit, match="no model of the catalogue fits a device"):
        await front.start()
    await front.close()


async def test_pins_from_the_start_count_for_what_fits_beside_them() -> None:
    hub = ScriptedNodes(auto=True)
    front, _ = make_front(
        hub, FakeEntry(facts("large", 6_000)), FakeEntry(facts("letters", 6_000)), pinned=["large"]
    )
    await front.start()
    assert await hub.next(Pin) == Pin(facts("large").id, True)
    with pytest.raises(DoesNotFit):
        await events_of(front, ask())
    await front.close()


async def test_a_model_is_removed_once_although_two_operators_ask_at_once() -> None:
    """The second one would put back what the first has removed."""
    hub = ScriptedNodes(auto=True)
    async with started(hub, FakeEntry(facts("letters")), FakeEntry(facts("others"))) as front:
        both = await asyncio.gather(
            front.unregister("letters"), front.unregister("letters"), return_exceptions=True
        )
        assert [type(answer) for answer in both] == [type(None), InUse]
        assert [served.name for served in front.models] == ["others"]


async def test_a_model_that_the_node_does_not_know_any_longer_is_removed() -> None:
    """Another node has come while the removal was under way, and was not told of the model."""
    hub = ScriptedNodes(auto=True)
    async with started(hub, FakeEntry(facts("letters")), FakeEntry(facts("others"))) as front:
        hub.refuses["letters"] = "model letters is not registered"
        hub.codes["letters"] = ErrorCode.NOT_FOUND
        await front.unregister("letters")
        assert [served.name for served in front.models] == ["others"]
