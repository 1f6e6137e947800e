"""Tools: what a template is given, and calls that are parsed back, whole and streamed."""

import asyncio
import json
from typing import Any

import pytest

from tests.server.http_api.http_calls import CHAT, TEXT, answer_with, events, http, usage_of
from tests.server.scripted_models import FakeEntry, LetterTokenizer, facts
from tokenmux.messages.commands import Submit
from tokenmux.server.front.generation import Chat, ChatMessage
from tokenmux.server.http_api.body_fields import ask_of_body
from tokenmux.server.http_api.request_bodies import ChatBody, parse_body

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}},
}
NOW = {"type": "function", "function": {"name": "now"}}
ASKED = CHAT | {"tools": [WEATHER, NOW], "max_tokens": 9}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
OTHER = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'


def model(template: str = "{{ tools }}<tool_call>") -> FakeEntry:
    return FakeEntry(facts("letters"), letters=LetterTokenizer(template=template, width=1))


async def answered(body: dict[str, Any], output: str, entry: FakeEntry | None = None) -> list[Any]:
    """The choices of an answer whose text is `output`, in pieces of three letters; a letter is a token."""
    async with http(entry or model(), auto=False) as (served, client):
        answering = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        await answer_with(served, output)
        answer = await answering
        assert answer.status_code == 200, answer.text
        documents = events(answer.text)[0][:-1] if body.get("stream") else [answer.json()]
        return [choice for document in documents for choice in document["choices"]]


async def test_calls_are_parsed_back() -> None:
    (choice,) = await answered(ASKED, f"Let me look.\n{CALL}\n{OTHER}")
    message = choice["message"]
    assert (message["role"], message["content"]) == ("assistant", "Let me look.")
    assert choice["finish_reason"] == "tool_calls"
    assert [call["type"] for call in message["tool_calls"]] == ["function", "function"]
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city": "Bern"}'},
        {"name": "now", "arguments": "{}"},
    ]
    ids = [call["id"] for call in message["tool_calls"]]
    assert len(set(ids)) == 2
    assert all(one.startswith("call_") for one in ids)


async def test_calls_alone_have_no_content() -> None:
    (choice,) = await answered(ASKED, CALL)
    assert choice["message"]["content"] is None


def call_chunks(choices: list[Any]) -> list[Any]:
    return [call for choice in choices for call in choice["delta"].get("tool_calls", ())]


async def test_calls_in_a_stream() -> None:
    choices = await answered(ASKED | {"stream": True}, f"Well.{CALL}{OTHER}")
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "Well."
    weather, *rest = call_chunks(choices)
    assert weather["function"]["name"] == "weather"
    assert (weather["index"], weather["type"], weather["id"][:5]) == (0, "function", "call_")
    more = [chunk for chunk in rest if chunk["index"] == 0]
    assert len(more) > 3, "arguments come while they are written"
    assert all(chunk.keys() == {"index", "function"} for chunk in more)
    assert all(chunk["function"].keys() == {"arguments"} for chunk in more)
    pieces = [chunk["function"]["arguments"] for chunk in (weather, *more)]
    assert "".join(pieces) == '{"city": "Bern"}'
    now = rest[len(more)]
    assert (now["index"], now["function"]["name"]) == (1, "now")
    assert now["id"] != weather["id"]
    assert choices[-1]["finish_reason"] == "tool_calls"


QWEN = "<tool_call><function=weather><parameter=city>Bern</parameter></function></tool_call>"


@pytest.mark.parametrize(
    ("template", "output"),
    [
        ("<tool_call>", f"Well. {CALL}\n{OTHER}"),
        ("<tool_call>", CALL[:-20]),
        ("<function=", QWEN),
        ("[TOOL_CALLS]", '[TOOL_CALLS]weather[ARGS]{"city":"B\\u00e4rn" }[TOOL_CALLS]now{}'),
        ("<｜tool▁calls▁begin｜>", '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{"a": [{}]}'),
        ('{"name": function name, "parameters"', '{"name": "weather", "parameters": {"city": "Bern"}} so'),
    ],
)
async def test_a_stream_says_what_the_whole_answer_has(template: str, output: str) -> None:
    entry = model("{{ tools }}" + template)
    (whole,) = await answered(ASKED, output, entry)
    choices = await answered(ASKED | {"stream": True}, output, entry)
    calls: list[dict[str, str]] = []
    for chunk in call_chunks(choices):
        if "id" in chunk:
            calls.append({"name": chunk["function"]["name"], "arguments": ""})
        assert chunk["index"] == len(calls) - 1
        calls[-1]["arguments"] += chunk["function"]["arguments"]
    assert calls
    assert calls == [call["function"] for call in whole["message"]["tool_calls"]]
    assert "".join(one["delta"].get("content", "") for one in choices) == (whole["message"]["content"] or "")
    assert choices[-1]["finish_reason"] == whole["finish_reason"]


async def test_an_answer_without_calls_is_text() -> None:
    (choice,) = await answered(ASKED, "It is <tool")
    assert choice["message"] == {"role": "assistant", "content": "It is <tool"}
    assert choice["finish_reason"] == "stop"


async def test_calls_after_the_first_are_left_out_if_asked() -> None:
    (choice,) = await answered(ASKED | {"parallel_tool_calls": False}, CALL + OTHER)
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]
    choices = await answered(ASKED | {"parallel_tool_calls": False, "stream": True}, CALL + OTHER)
    assert {chunk["index"] for chunk in call_chunks(choices)} == {0}


async def test_ids_are_as_long_as_a_template_takes_them() -> None:
    (choice,) = await answered(ASKED, "[TOOL_CALLS]now[ARGS]{}", model("{{ tools }}[TOOL_CALLS]"))
    (call,) = choice["message"]["tool_calls"]
    assert len(call["id"]) == 9
    assert call["id"].isalnum()


@pytest.mark.parametrize(
    ("choice", "offered"), [("auto", "t:weather;t:now;"), ("none", ""), (None, "t:weather;t:now;")]
)
async def test_what_the_template_is_given(choice: str | None, offered: str) -> None:
    async with http(model()) as (served, client):
        answer = await client.post("/v1/chat/completions", json=ASKED | {"tool_choice": choice})
        assert answer.status_code == 200
        assert "".join(map(chr, (await served.hub.next(Submit)).prompt)) == "u:a;" + offered


def test_results_of_calls_go_back_to_the_template() -> None:
    call = {"id": "x", "function": {"name": "n", "arguments": '{"a":1}'}}
    messages = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "name": "n", "content": "5"},
    ]
    chat = ask_of_body(parse_body(ChatBody, json.dumps(CHAT | {"messages": messages}).encode())).prompt
    shown = {"id": "x", "type": "function", "function": {"name": "n", "arguments": {"a": 1}}}
    assert chat == Chat(
        (
            ChatMessage("assistant", "", {"tool_calls": [shown]}),
            ChatMessage("tool", "5", {"tool_call_id": "x", "name": "n"}),
        )
    )


NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("choice", "output", "calls"),
    [
        (NAMED, '{"city": "Bern"}', [("weather", {"city": "Bern"})]),
        (
            "required",
            '[{"name": "weather", "arguments": {"city": "Bern"}}, {"name": "now", "arguments": {}}]',
            [("weather", {"city": "Bern"}), ("now", {})],
        ),
    ],
)
async def test_a_forced_call_is_all_of_the_answer(
    choice: Any, output: str, calls: list[Any], stream: bool
) -> None:
    choices = await answered(ASKED | {"tool_choice": choice, "stream": stream}, output)
    said = [one.get("delta") or one.get("message") or {} for one in choices]
    found: list[list[str]] = []
    for call in (call for one in said for call in one.get("tool_calls") or ()):
        if "id" in call:
            found.append([call["function"]["name"], ""])
        found[-1][1] += call["function"]["arguments"]
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
    assert "".join(one.get("content") or "" for one in said) == ""
    assert choices[-1]["finish_reason"] == "tool_calls"


NAMELESS = {"type": "function", "function": {}}


@pytest.mark.parametrize(
    ("extra", "param", "remedy"),
    [
        ({"tools": [NAMELESS]}, "tools[0].function.name", "missing"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "match"),
        ({"tools": [NOW, NOW]}, "tools[1].function.name", "its own name"),
        (
            {"tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(129)]},
            "tools",
            "128",
        ),
        ({"tools": 3}, "tools", "array"),
        ({"tools": None, "tool_choice": "auto"}, "tool_choice", "send tools too"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "send tools too"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "weather, now"),
        ({"tool_choice": "sometimes"}, "tool_choice", "auto"),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "'auto'"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "boolean"),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "messages[0].tool_calls[0]", "object"),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "n", "arguments": "{"}}]}
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
            "JSON",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "n", "arguments": "3"}}]}
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
            "object",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content", "send text"),
        ({"continue_final_message": True}, None, "assistant"),
        ({"add_generation_prompt": False}, "add_generation_prompt", "continue_final_message"),
        ({"chat_template_kwargs": {"messages": 1}}, None, "template argument"),
        ({"documents": [3]}, "documents[0]", "object"),
        ({"functions": [NOW]}, "functions", "leave it out"),
    ],
)
async def test_what_is_wrong_is_named(extra: dict[str, Any], param: str | None, remedy: str) -> None:
    async with http(model()) as (served, client):
        answer = await client.post("/v1/chat/completions", json=ASKED | extra)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["param"] or "").startswith(param or "")
        assert remedy in error["message"]
        assert served.front.n_live == 0


@pytest.mark.parametrize(
    ("template", "remedy"), [("no such thing", "knows no tools"), ("{{ tools }}", "cannot be read")]
)
async def test_a_model_whose_template_is_not_known(template: str, remedy: str) -> None:
    async with http(model(template)) as (_, client):
        answer = await client.post("/v1/chat/completions", json=ASKED)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "tools"
        assert remedy in answer.json()["error"]["message"]
        for choice in ("none", "text"):
            answer = await client.post("/v1/chat/completions", json=ASKED | {"tool_choice": choice})
            assert answer.status_code == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_several_choices(stream: bool) -> None:
    async with http() as (_, client):
        body = TEXT | {
            "n": 3,
            "stream": stream,
            "stream_options": {"include_usage": True} if stream else None,
        }
        answer = await client.post("/v1/completions", json=body)
        if stream:
            chunks = events(answer.text)[0][:-1]
            choices = [choice for chunk in chunks for choice in chunk["choices"]]
            usage = chunks[-1]["usage"]
        else:
            choices, usage = answer.json()["choices"], answer.json()["usage"]
            assert [choice["index"] for choice in choices] == [0, 1, 2]
        texts = ["".join(choice["text"] for choice in choices if choice["index"] == n) for n in range(3)]
        assert texts == ["bcd"] * 3
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"] * 3
        assert usage == usage_of(1, 9)
        for n in (0, -1, 10**9):
            refused = await client.post("/v1/completions", json=TEXT | {"n": n})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
