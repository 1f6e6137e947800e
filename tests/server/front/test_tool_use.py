"""What tools make of a request, whatever its dialect, and how calls are read across a seam."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.server.front.asking import ask, events_of, started, text_of, tokens_of
from tests.server.scripted_models import FakeEntry, LetterTokenizer, facts
from tokenmux.core.errors import InvalidRequest
from tokenmux.core.facts import ModelId
from tokenmux.core.request import FinishReason
from tokenmux.messages.commands import Submit
from tokenmux.messages.reports import Finished, Tokens
from tokenmux.server.front.call_reader import joined_calls
from tokenmux.server.front.front import Front
from tokenmux.server.front.generation import (
    Ask,
    Chat,
    ChatMessage,
    Constraint,
    Delivered,
    FinishInfo,
    PlacedCall,
    StreamEvent,
    TokenDelta,
    ToolChoice,
)
from tokenmux.server.front.tool_use import tool_use_of
from tokenmux.testing.scripted_node import ScriptedNodes

PARAMETERS = {"properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now"}}
LETTERS = LetterTokenizer(template="{{ tools }}<tool_call>", width=1)
REQUIRED = ToolChoice("required")
CALLS = 'S. [TOOL_CALLS]w[ARGS]{"a":"b"}[TOOL_CALLS]n{}'


def chat(*tools: dict[str, Any], **changes: object) -> Ask:
    return ask(prompt=Chat((ChatMessage("user", "hi"),), tools), **changes)


def used(asked: Ask, template: str = "{{ tools }}<tool_call>") -> Any:
    return tool_use_of(asked, ModelId("m"), LetterTokenizer(template=template).facts)


def schema_of(*tools: dict[str, Any], choice: ToolChoice = REQUIRED, several: bool = True) -> Any:
    asked, _ = used(chat(*tools, tool_choice=choice, several_calls=several))
    assert asked.constraint.kind == "json_schema"
    return json.loads(asked.constraint.text)


def test_a_forced_call_obeys_the_schemas_of_the_tools() -> None:
    named = ToolChoice("required", "weather")
    assert schema_of(WEATHER, NOW, choice=named) == {"type": "object", **PARAMETERS}
    several = schema_of(WEATHER, NOW)
    assert (several["type"], several["minItems"], "maxItems" in several) == ("array", 1, False)
    weather, now = several["items"]["anyOf"]
    assert weather["properties"] == {
        "name": {"const": "weather"},
        "arguments": {"type": "object", **PARAMETERS},
    }
    assert now["properties"]["arguments"] == {"type": "object"}
    assert schema_of(WEATHER, several=False)["maxItems"] == 1

    def tool(name: str, definition: Any) -> Any:
        schema = {"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": definition}}
        return {"type": "function", "function": {"name": name, "parameters": schema}}

    assert schema_of(tool("x", {"type": "null"}), tool("y", {"type": "null"}))["$defs"] == {
        "A": {"type": "null"}
    }
    with pytest.raises(InvalidRequest, match="'A' in different ways"):
        schema_of(tool("x", {}), tool("y", {"type": "null"}))


def test_what_a_choice_leaves_of_the_tools() -> None:
    assert used(chat(WEATHER, tool_choice=ToolChoice("none")))[0].prompt.tools == ()
    for choice in (ToolChoice("none"), ToolChoice("text")):
        assert used(chat(tool_choice=choice))[1] is None, "without tools it says nothing"
        assert used(chat(WEATHER, tool_choice=choice), "no such thing")[1] is None
    assert used(chat(WEATHER, tool_choice=ToolChoice("text")))[0].prompt.tools == (WEATHER,)
    assert used(chat(WEATHER))[1].several
    assert not used(chat(WEATHER, several_calls=False))[1].several
    assert used(chat(WEATHER), "tools <|tool_call|>")[0].skip_special_tokens is False


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        (chat(WEATHER, WEATHER), "tools[1].function.name", "weather is there twice"),
        (chat(NOW | {"type": "web"}), "tools[0]", "not a function with a name"),
        (chat({"type": "function", "function": {"name": 5}}), "tools[0]", "not a function with a name"),
        (chat({}), "tools[0]", "not a function with a name"),
        (chat(tool_choice=REQUIRED), "tool_choice", "send tools too"),
        (chat(tool_choice=ToolChoice()), "tool_choice", "send tools too"),
        (chat(NOW, tool_choice=ToolChoice("required", "x")), "tool_choice", "none of the tools: now"),
        (
            chat(NOW, tool_choice=REQUIRED, constraint=Constraint("regex", "a")),
            "tool_choice",
            "leave one of the two out",
        ),
    ],
)
async def test_what_does_not_fit_is_refused(asked: Ask, field: str, said: str) -> None:
    entry = FakeEntry(facts("letters"), letters=LETTERS)
    async with started(ScriptedNodes(auto=True), entry) as front:
        with pytest.raises(InvalidRequest, match=said) as refused:
            await events_of(front, asked)
        assert refused.value.field == field
        assert front.n_live == 0


async def test_a_schema_that_cannot_be_compiled_is_that_of_the_tools() -> None:
    wrong = {"type": "function", "function": {"name": "x", "parameters": {"type": "no such type"}}}
    entry = FakeEntry(facts("letters"), letters=LETTERS)
    async with started(ScriptedNodes(), entry) as front:
        with pytest.raises(InvalidRequest) as refused:
            await events_of(front, chat(wrong, tool_choice=REQUIRED))
        assert refused.value.field == "tools"


async def answered(front: Front, hub: ScriptedNodes, asked: Ask, n_held: int) -> list[StreamEvent]:
    """The events of an answer whose tokens are the letters of `CALLS`, of which the client holds some."""
    output = tuple(map(ord, CALLS))
    async with front.open(replace(asked, delivered=(Delivered(output[:n_held]),))) as stream:
        submit = await hub.next(Submit)
        for at in range(n_held, len(output), 3):
            hub.post(Tokens(submit.request.id, at, output[at : at + 3], 100.0))
        hub.post(Finished(submit.request.id, FinishReason.STOP, 100.0))
        return [event async for event in stream]


def calls_of(events: list[StreamEvent]) -> list[PlacedCall]:
    return [call for event in events if isinstance(event, TokenDelta) for call in event.calls]


async def test_wherever_it_is_cut_the_calls_go_on() -> None:
    """Ids of calls too are the same at every server."""
    hub = ScriptedNodes()
    tools = ({"type": "function", "function": {"name": name}} for name in "wn")
    asked = chat(*tools, request_id="mine", max_tokens=len(CALLS) + 1)
    letters = LetterTokenizer(template="{{ tools }}[TOOL_CALLS]", width=1)
    async with started(hub, FakeEntry(facts("letters"), letters=letters)) as front:
        events = await answered(front, hub, asked, 0)
        whole, text = joined_calls(calls_of(events)), text_of(events)
        assert [(call.start and call.start.name, call.arguments) for call in whole] == [
            ("w", '{"a":"b"}'),
            ("n", "{}"),
        ]
        assert text == "S."
        assert whole[0].start != whole[1].start
        for n_held in range(1, len(CALLS)):
            again = await answered(front, hub, asked, n_held)
            assert tokens_of(again) == list(map(ord, CALLS[n_held:]))
            assert text.endswith(text_of(again))
            for call in joined_calls(calls_of(again)):
                known = whole[call.index]
                assert known.arguments.endswith(call.arguments)
                assert call.start in (None, known.start)
                assert (call.start is None) or call.arguments == known.arguments
            assert isinstance(again[-1], FinishInfo)
            assert again[-1].called
