"""Calls of tools through both clients, whole and streamed, and over servers that are lost."""

import asyncio
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from tests.client.test_resumption import AT_ONCE, LOST
from tests.server.harness import PATIENCE_S, Served, ServerThread, serving
from tests.server.http_api.http_calls import answer_with
from tests.server.scripted_models import FakeEntry, LetterTokenizer, facts
from tokenmux.client import (
    AsyncClient,
    CallFailed,
    Client,
    Completion,
    Delta,
    Finish,
    GenerationEvent,
    Message,
    ToolCall,
    ToolCallDelta,
    WrongArgument,
    generation_values,
)
from tokenmux.client.generation_requests import generate_request, stream_request
from tokenmux.client.resumption import GenerationProgress
from tokenmux.core.facts import ModelId
from tokenmux.server.front.call_reader import CallReader
from tokenmux.server.front.generation import Ask, Chat, TokenDelta
from tokenmux.server.front.tool_use import tool_use_of
from tokenmux.server.grpc_api.answer_messages import stream_response
from tokenmux.server.grpc_api.ask_messages import ask_of
from tokenmux.v1 import inference_pb2

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}},
}
NOW = {"type": "function", "function": {"name": "now"}}
HI = [{"role": "user", "content": "hi"}]
OPTIONS: dict[str, Any] = {"tools": [WEATHER, NOW], "max_tokens": 9, "timeout_s": PATIENCE_S}
OUTPUT = 'Well.<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
OUTPUT += '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
NAMED = {"type": "function", "function": {"name": "weather"}}
LETTERS = LetterTokenizer(template="{{ tools }}<tool_call>", width=1)


def tooled() -> Any:
    return serving(FakeEntry(facts("letters"), letters=LETTERS), auto=False)


def said(calls: tuple[ToolCall, ...]) -> list[tuple[str, str]]:
    assert len({call.id for call in calls}) == len(calls)
    return [(call.name, call.arguments) for call in calls]


def put_together(events: list[GenerationEvent]) -> tuple[str, tuple[ToolCall, ...], str]:
    """The text, the calls and the reason of a stream."""
    text, calls, reason = "", list[list[str]](), ""
    for event in events:
        match event:
            case Delta():
                text += event.text
                for piece in event.tool_calls:
                    if piece.id:
                        calls.append([piece.id, piece.name, ""])
                    assert piece.index == len(calls) - 1
                    calls[-1][2] += piece.arguments
            case Finish():
                reason = event.reason
    return text, tuple(ToolCall(*call) for call in calls), reason


def check(answer: Completion) -> None:
    assert (answer.text, answer.finish.reason) == ("Well.", "tool_calls")
    assert said(answer.tool_calls) == [("weather", '{"city": "Bern"}'), ("now", "{}")]
    assert answer.choices[0].tool_calls == answer.tool_calls


def test_the_blocking_client_has_calls() -> None:
    with ServerThread(tooled) as server, Client(server.served.target) as client:
        answering = server.begin(answer_with(server.served, OUTPUT))
        whole = client.chat("letters", HI, **OPTIONS)
        check(whole)
        answering.result(PATIENCE_S)
        server.begin(answer_with(server.served, OUTPUT))
        events = list(client.stream("letters", HI, **OPTIONS))
    text, calls, reason = put_together(events)
    assert (text, said(calls), reason) == ("Well.", said(whole.tool_calls), "tool_calls")
    pieces = [piece for event in events if isinstance(event, Delta) for piece in event.tool_calls]
    assert len(pieces) >= 2  # pieces that wait while the client does not read become one
    assert pieces[0] == ToolCallDelta(0, pieces[0].id, "weather", pieces[0].arguments)


async def test_the_async_client_has_calls_and_what_forces_them() -> None:
    async with tooled() as served, AsyncClient(served.target) as client:
        check(await answered(served, client, OUTPUT))
        forced = await answered(served, client, '{"city": "Bern"}', tool_choice=NAMED)
        assert said(forced.tool_calls) == [("weather", '{"city": "Bern"}')]
        alone = await answered(served, client, OUTPUT, parallel_tool_calls=False)
        assert said(alone.tool_calls) == [("weather", '{"city": "Bern"}')]
        text = await answered(served, client, OUTPUT, tool_choice="text")
        assert (text.text, text.tool_calls, text.finish.reason) == (OUTPUT, (), "stop")
        with pytest.raises(CallFailed, match="send tools too") as refused:
            await client.chat("letters", HI, tool_choice="auto")
        assert refused.value.details.fields == ("chat.tool_choice",)
        with pytest.raises(CallFailed, match="there twice") as refused:
            await client.chat("letters", HI, tools=[NOW, NOW])
        assert refused.value.details.fields == ("chat.tools[1].function.name",)


async def answered(served: Served, client: AsyncClient, output: str, **options: Any) -> Completion:
    answering = asyncio.ensure_future(client.chat("letters", HI, **(OPTIONS | options)))
    await answer_with(served, output)
    return await answering


def test_calls_and_their_results_go_back() -> None:
    call = ToolCall("x", "weather", '{"city": "Bern"}')
    conversation = [
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "5 C", tool_call_id="x", name="weather"),
    ]
    as_openai = {"id": "x", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    mappings = [
        {"role": "assistant", "content": None, "tool_calls": [as_openai]},
        {"role": "tool", "content": "5 C", "tool_call_id": "x", "name": "weather"},
    ]
    request = generate_request("m", conversation)
    assert request == generate_request("m", mappings)
    prompt = ask_of(request).prompt
    assert isinstance(prompt, Chat)
    function = {"name": "weather", "arguments": {"city": "Bern"}}
    assert prompt.messages[0].fields == {
        "tool_calls": [{"id": "x", "type": "function", "function": function}]
    }
    assert prompt.messages[1].fields == {"tool_call_id": "x", "name": "weather"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tool_choice": "sometimes"}, WrongArgument, "is not a choice: write 'auto'"),
        ({"tool_choice": {"name": "weather"}}, WrongArgument, "is not a choice"),
        ({"prompt": "text", "tool_choice": "auto"}, WrongArgument, "for conversations"),
        (
            {"prompt": [{"role": "assistant", "content": "", "tool_calls": ["x"]}]},
            TypeError,
            "not a call of a tool",
        ),
        ({"prompt": [{"role": "user", "content": "a", "colour": "red"}]}, TypeError, "not a chat message"),
    ],
)
def test_what_cannot_be_sent(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        generate_request("m", **({"prompt": HI} | options))


def answer(request: inference_pb2.GenerateRequest, chance: Random) -> Iterator[Any]:
    """What any server answers: the rest of `OUTPUT`, in pieces as they happen to be."""
    asked, use = tool_use_of(Ask("m", Chat((), (WEATHER, NOW))), ModelId("m"), LETTERS.facts)
    assert use is not None
    reader = CallReader(use, asked.model)
    held = list(request.delivered[0].token_ids) if request.delivered else []
    for token in held:
        reader.push(chr(token))
    info = inference_pb2.PromptInfo(request_id="r", seed=5, max_tokens=len(OUTPUT))
    yield inference_pb2.GenerateStreamResponse(prompt_info=info)
    at = len(held)
    while at < len(OUTPUT):
        letters = OUTPUT[at : at + chance.randint(1, 9)]
        parts = [reader.push(letter) for letter in letters]
        calls = tuple(call for _, found in parts for call in found)
        text = "".join(text for text, _ in parts)
        yield stream_response(TokenDelta(at, tuple(map(ord, letters)), text, calls=calls))
        at += len(letters)
    text, calls = reader.finish()
    if text or calls:
        yield stream_response(TokenDelta(at, (), text, calls=calls))
    yield inference_pb2.GenerateStreamResponse(finish_info=inference_pb2.FinishInfo())


@pytest.mark.parametrize("seed", range(40))
def test_a_stream_that_breaks_off_has_each_piece_of_a_call_once(seed: int) -> None:
    chance = Random(seed)
    progress = GenerationProgress(stream_request("m", HI), None, AT_ONCE)
    events: list[GenerationEvent] = []
    n_lost = 0
    while True:
        for response in answer(progress.request.request, chance):
            event = generation_values.event(response) if progress.take(response) else None
            if event is not None:
                events.append(event)
            if n_lost < 4 and chance.random() < 0.1:
                break
        else:
            break
        n_lost += 1
        progress.wait_s(LOST)
    text, calls, _ = put_together(events)
    assert text == "Well."
    assert said(calls) == [("weather", '{"city": "Bern"}'), ("now", "{}")]
