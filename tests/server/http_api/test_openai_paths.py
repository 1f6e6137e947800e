"""The dialect over the real front and a scripted node: paths, fields, chunks, errors."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import httpx
import pytest

from tests.server.http_api.http_calls import CHAT, TEXT, events, http, nothing_lives, usage_of
from tests.server.scripted_models import FakeEntry, LetterTokenizer, facts
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.request import FinishReason
from tokenmux.core.sampling import LogitRules
from tokenmux.messages.commands import Cancel, Pause, Submit
from tokenmux.messages.reports import Finished, Tokens
from tokenmux.server.front.api_keys import Key, Scope
from tokenmux.server.front.limits import Limits
from tokenmux.server.http_api.http_server import HttpTransport

KEYS = (Key.of("one", Scope.INFERENCE, "secret"), Key.of("boss", Scope.ADMIN, "boss"))


async def test_a_text_is_continued() -> None:
    async with http() as (_, client):
        answer = await client.post("/v1/completions", json=TEXT)
        body = answer.json()
        assert answer.status_code == 200
        assert body["id"] == f"cmpl-{answer.headers['x-request-id']}"
        assert body["object"] == "text_completion"
        assert body["model"] == "letters"
        assert body["created"] > 1_600_000_000
        assert body["choices"] == [
            {"index": 0, "text": "bcd", "logprobs": None, "finish_reason": "length", "stop_reason": None}
        ]
        assert body["usage"] == usage_of(1, 3)


async def test_a_conversation_is_answered() -> None:
    async with http() as (_, client):
        body = (await client.post("/v1/chat/completions", json=CHAT)).json()
        assert body["object"] == "chat.completion"
        assert body["id"].startswith("chatcmpl-")
        assert body["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "<=>"},
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ]
        assert body["usage"] == usage_of(4, 3)


async def test_chunks_of_a_conversation() -> None:
    async with http() as (_, client):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        answer = await client.post("/v1/chat/completions", json=CHAT | options)
        chunks, comments = events(answer.text)
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert chunks.pop() == "[DONE]"
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in chunks}) == 1
        usage = chunks.pop()
        assert usage["choices"] == []
        assert usage["usage"] == usage_of(4, 3)
        assert {chunk["usage"] for chunk in chunks} == {None}
        choices = [chunk["choices"][0] for chunk in chunks]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("content", "") for choice in choices) == "<=>"
        assert choices[-1]["delta"] == {}
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
        assert all("role" not in choice["delta"] for choice in choices[1:])
        assert comments == []  # the scripted node's phases are over at once


async def test_chunks_of_a_text() -> None:
    async with http() as (_, client):
        chunks, _ = events((await client.post("/v1/completions", json=TEXT | {"stream": True})).text)
        assert chunks.pop() == "[DONE]"
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "bcd"
        assert all("usage" not in chunk for chunk in chunks)
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_comments_tell_what_a_stream_waits_for() -> None:
    async with http(auto=False) as (served, client):
        request = client.build_request("POST", "/v1/chat/completions", json=CHAT | {"stream": True})
        answer = await client.send(request, stream=True)
        submit = await served.hub.next(Submit)
        lines = answer.aiter_lines()
        name = submit.request.id
        for phase, said in (
            (PhaseChanged(name, RequestPhase.QUEUED, position=3), ": queued 3 ahead"),
            (PhaseChanged(name, RequestPhase.LOADING, progress=0.42), ": loading 42%"),
            (PhaseChanged(name, RequestPhase.PAGED_OUT), ": paged out"),
        ):
            served.hub.post(phase)
            assert [await anext(lines), await anext(lines)] == [said, ""]
        await answer.aclose()
        assert (await served.hub.next(Cancel)).request == name


async def test_a_silent_stream_says_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenmux.server.http_api.event_stream.SILENT_S", 0.05)
    async with http(auto=False) as (served, client):
        request = client.build_request("POST", "/v1/completions", json=TEXT | {"stream": True})
        answer = await client.send(request, stream=True)
        await served.hub.next(Submit)
        assert await anext(answer.aiter_lines()) == ": still here"
        await answer.aclose()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_request(stream: bool) -> None:
    async with http(auto=False) as (served, client):
        request = client.build_request("POST", "/v1/completions", json=TEXT | {"stream": stream})
        request.extensions["timeout"] = {"read": 0.2}
        with pytest.raises(httpx.ReadTimeout):
            await client.send(request)
        submit = await served.hub.next(Submit)
        assert (await served.hub.next(Cancel)).request == submit.request.id
        await nothing_lives(served)


async def test_a_client_that_reads_nothing_is_paused() -> None:
    limits = Limits(buffer_tokens=8)
    letters = LetterTokenizer(width=1_000_000)
    wide = FakeEntry(facts("letters"), letters=letters)
    async with http(wide, auto=False, limits=limits) as (served, client):
        body = TEXT | {"stream": True, "max_tokens": 40}
        answer = await client.send(client.build_request("POST", "/v1/completions", json=body), stream=True)
        submit = await served.hub.next(Submit)
        for index in range(39):
            served.hub.post(Tokens(submit.request.id, index, (98,), 100.0))
            served.hub.post(PhaseChanged(submit.request.id, RequestPhase.RUNNING))
            await asyncio.sleep(0.01)
            if any(isinstance(command, Pause) for command in served.hub.unread()):
                break
        else:
            pytest.fail("the request was never paused")
        await answer.aclose()
        await served.hub.next(Cancel)


@pytest.mark.parametrize(
    ("field", "value", "attribute", "expected"),
    [
        ("temperature", 0.5, "temperature", 0.5),
        ("temperature", None, "temperature", 0.0),
        ("top_p", 0.5, "top_p", 0.5),
        ("top_k", 7, "top_k", 7),
        ("top_k", -1, "top_k", 0),
        ("seed", 2**64 - 1, "seed", 2**64 - 1),
    ],
)
async def test_how_a_draw_is_asked_for(field: str, value: object, attribute: str, expected: object) -> None:
    async with http(auto=False) as (served, client):
        request = client.build_request("POST", "/v1/completions", json=TEXT | {"stream": True, field: value})
        answer = await client.send(request, stream=True)
        submit = await served.hub.next(Submit)
        assert getattr(submit.sampling, attribute) == expected
        await answer.aclose()


async def test_defaults_are_those_of_the_dialect() -> None:
    async with http() as (served, client):
        await client.post("/v1/completions", json={"model": "letters", "prompt": "a"})
        submit = await served.hub.next(Submit)
        assert submit.sampling.temperature == 1.0
        assert submit.request.max_tokens == 16
        await client.post("/v1/chat/completions", json={k: CHAT[k] for k in ("model", "messages")})
        submit = await served.hub.next(Submit)
        assert submit.request.max_tokens == 8  # the server's own
        assert submit.request.tenant == "default"


async def test_how_a_request_is_asked_for() -> None:
    async with http() as (served, client):
        extra = {
            "max_tokens": None,
            "max_completion_tokens": 5,
            "min_tokens": 2,
            "stop_token_ids": [7],
            "ignore_eos": True,
            "user": "ann",
            "ttft_s": 3,
            "tpot_s": 0.5,
            "weight": 2,
            "min_p": 0.1,
            "presence_penalty": 0.5,
            "frequency_penalty": -0.5,
            "repetition_penalty": 1.5,
            "logit_bias": {"3": -2.5},
        }
        assert (await client.post("/v1/chat/completions", json=CHAT | extra)).status_code == 200
        submit = await served.hub.next(Submit)
        assert (submit.request.max_tokens, submit.min_tokens) == (5, 2)
        assert submit.stop_token_ids == {7}
        assert submit.request.tenant == "ann"
        assert (submit.request.service.ttft_s, submit.request.service.tpot_s) == (3, 0.5)
        assert submit.request.weight == 2
        assert submit.sampling.min_p == 0.1
        assert submit.sampling.rules == LogitRules(1.5, -0.5, 0.5, ((3, -2.5),))


@pytest.mark.parametrize("stop", ["d", ["x", "d"]])
async def test_a_stop_string_ends_the_text(stop: object) -> None:
    async with http() as (_, client):
        body = (await client.post("/v1/completions", json=TEXT | {"max_tokens": 9, "stop": stop})).json()
        choice = body["choices"][0]
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("bc", "stop", "d")


async def test_a_stop_token_is_named_only_if_the_client_named_it() -> None:
    async with http(auto=False) as (served, client):
        for named in ([98], []):
            request = client.build_request(
                "POST", "/v1/completions", json=TEXT | {"stream": True, "stop_token_ids": named}
            )
            answer = await client.send(request, stream=True)
            name = (await served.hub.next(Submit)).request.id
            served.hub.post(Tokens(name, 0, (98 if named else 0,), 100.0))
            served.hub.post(Finished(name, FinishReason.STOP, 100.0))
            chunks, _ = events((await answer.aread()).decode())
            assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
            assert chunks[-2]["choices"][0]["stop_reason"] == (98 if named else None)


@pytest.mark.parametrize("prompt", ["a", [97], ["a"], [[97]]])
async def test_forms_of_a_prompt(prompt: object) -> None:
    async with http() as (_, client):
        body = (await client.post("/v1/completions", json=TEXT | {"prompt": prompt})).json()
        assert body["choices"][0]["text"] == "bcd"


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([{"role": "user", "content": "hi"}], "u:hi;"),
        ([{"role": "developer", "content": "x"}, {"role": "user", "content": "hi"}], "s:x;u:hi;"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            "u:a\nb;",
        ),
    ],
)
async def test_forms_of_a_conversation(messages: Sequence[object], prompt: str) -> None:
    async with http() as (served, client):
        await client.post("/v1/chat/completions", json=CHAT | {"messages": messages})
        assert "".join(map(chr, (await served.hub.next(Submit)).prompt)) == prompt


async def test_unknown_fields_are_ignored_and_named() -> None:
    async with http() as (_, client):
        extra = {"store": True, "logprobs": False, "n": 1, "tools": [], "x\r\ny": 1, "metadata": {}}
        answer = await client.post("/v1/chat/completions", json=CHAT | extra)
        assert answer.status_code == 200
        assert answer.headers["x-tokenmux-ignored"] == "store, metadata"
        assert "x-tokenmux-ignored" not in (await client.post("/v1/chat/completions", json=CHAT)).headers


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("model", None, "model"),
        ("model", "x" * 200, "model"),
        ("temperature", -1, "temperature"),
        ("temperature", "warm", "temperature"),
        ("temperature", 11, "temperature"),
        ("top_p", 0, "top_p"),
        ("top_k", -2, "top_k"),
        ("seed", -1, "seed"),
        ("seed", 10**30, "seed"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", 10_000, "max_tokens"),
        ("max_completion_tokens", 4, "max_completion_tokens"),
        ("min_tokens", -1, "min_tokens"),
        ("min_tokens", 4, "min_tokens"),
        ("stop", "", "stop"),
        ("stop", ["x"] * 17, "stop"),
        ("stop", ["x" * 257], "stop"),
        ("stop", 3, "stop"),
        ("stop_token_ids", [-1], "stop_token_ids"),
        ("stop_token_ids", [1] * 65, "stop_token_ids"),
        ("user", "(pool)", "user"),
        ("ttft_s", -1, "ttft_s"),
        ("tpot_s", 1e9, "tpot_s"),
        ("weight", 0, "weight"),
        ("stream_options", {"include_usage": True}, "stream_options"),
        ("n", 0, "n"),
        ("logprobs", 1, "logprobs"),
        ("presence_penalty", 2.5, "presence_penalty"),
        ("frequency_penalty", -2.5, "frequency_penalty"),
        ("repetition_penalty", 0, "repetition_penalty"),
        ("min_p", 1.5, "min_p"),
        ("logit_bias", {"x": 1}, "logit_bias"),
        ("logit_bias", {"-1": 1}, "logit_bias"),
        ("logit_bias", {"99999": 1}, "logit_bias"),
        ("logit_bias", {"1": 101}, "logit_bias"),
        ("bad_words", [""], "bad_words"),
        ("truncate_prompt_tokens", 0, "truncate_prompt_tokens"),
        ("response_format", {"type": "xml"}, "response_format.type"),
        ("response_format", {"type": "json_schema"}, "response_format"),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "text"}}},
            "response_format",
        ),
        ("structured_outputs", {"regex": "(a"}, "structured_outputs"),
        ("structured_outputs", {"regex": "a", "json_object": True}, "structured_outputs"),
        ("structured_outputs", {"choice": []}, "structured_outputs"),
        ("structured_outputs", {"regex": "a" * 300_000}, "structured_outputs"),
        ("structured_outputs", {}, "structured_outputs"),
        ("tools", [{"type": "function"}], "tools[0].function"),
        ("tool_choice", "auto", "tool_choice"),
        ("messages", [], "messages"),
        ("messages", "hi", "messages"),
        ("messages", None, "messages"),
        ("messages", [{"content": "x"}], "messages[0].role"),
        ("messages", [{"role": "", "content": "x"}], "messages"),
        ("messages", [{"role": "user"}], "messages[0].content"),
        ("messages", [{"role": "user", "content": 3}], "messages[0].content"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
        ("messages", [{"role": "assistant", "tool_calls": [1]}], "messages[0].tool_calls[0]"),
        ("messages", [{"role": "user", "content": "x" * 64}], "messages"),
        ("messages", [{"role": "user", "content": "x" * 10_000}], "messages"),
    ],
)
async def test_what_is_wrong_is_named(field: str, value: object, param: str) -> None:
    async with http() as (_, client):
        answer = await client.post("/v1/chat/completions", json=CHAT | {field: value})
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert (error["param"], error["type"]) == (param, "invalid_request_error")
        assert len(error["message"]) > 10
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


@pytest.mark.parametrize("prompt", ["", [], [[]], [""], [10_000], [-1], None, ["a", 3]])
async def test_a_wrong_prompt_is_named(prompt: object) -> None:
    async with http() as (_, client):
        answer = await client.post("/v1/completions", json=TEXT | {"prompt": prompt})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"3", b'{"model":"letters"', b"\xff", b'{"model":"\\ud800"}', b"[" * 100_000]
)
async def test_a_body_that_is_no_json(raw: bytes) -> None:
    async with http() as (_, client):
        headers = {"content-type": "application/json"}
        answer = await client.post("/v1/chat/completions", content=raw, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_what_http_refuses() -> None:
    async with http(transport=HttpTransport(max_body_bytes=1000)) as (_, client):
        for method, path, options, status in (
            ("GET", "/v1/nothing", {}, 404),
            ("GET", "/v1/completions", {}, 405),
            ("POST", "/v1/completions", {"data": {"a": "b"}}, 415),
            ("POST", "/v1/completions", {"content": b"{}"}, 415),
            ("POST", "/v1/completions", {"json": {"prompt": "x" * 1000}}, 413),
            ("GET", "/v1/models/nothing", {}, 404),
            ("GET", "/v1/models/some/thing", {}, 404),
            ("GET", "/health", {}, 200),
        ):
            answer = await client.request(method, path, **options)  # type: ignore[arg-type]
            assert answer.status_code == status, path
            if status >= 400:
                error = answer.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert answer.headers["x-should-retry"] == "false"


async def test_what_is_not_served_says_what_is() -> None:
    async with http() as (_, client):
        answer = await client.post("/v1/responses", json={"model": "letters", "input": "a"})
        assert answer.status_code == 404
        assert "not served here" in answer.json()["error"]["message"]
        assert "completions" in answer.json()["error"]["message"]


async def test_a_body_without_a_length_is_bounded_too() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1000

    async with http(transport=HttpTransport(max_body_bytes=1000)) as (_, client):
        headers = {"content-type": "application/json"}
        try:
            answer = await client.post("/v1/completions", content=endless(), headers=headers)
            assert answer.status_code == 413
        except (httpx.WriteError, httpx.ReadError):  # it was still writing when the connection was closed
            pass


async def test_a_model_that_is_not_there() -> None:
    async with http() as (_, client):
        answer = await client.post("/v1/chat/completions", json=CHAT | {"model": "leters"})
        error = answer.json()["error"]
        assert answer.status_code == 404
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert "letters" in error["message"]


async def test_models_that_are_served() -> None:
    async with http(FakeEntry(facts("a")), FakeEntry(facts("b", n_bytes=10**9))) as (_, client):
        listed = (await client.get("/v1/models")).json()
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == ["a"]
        one = (await client.get("/v1/models/a")).json()
        assert one == listed["data"][0]
        assert (one["object"], one["owned_by"], one["max_model_len"]) == ("model", "tokenmux", 64)
        refused = await client.get("/v1/models/b")
        assert refused.status_code == 422
        assert refused.json()["error"]["code"] in ("not_servable", "does_not_fit")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic secret"}, 401),
        ({"authorization": "secret"}, 401),
        ({"api-key": "secret"}, 401),
        ({"authorization": "Bearer secret"}, 200),
        ({"authorization": "bearer boss"}, 200),
    ],
)
async def test_keys(headers: dict[str, str], status: int) -> None:
    async with http(keys=KEYS) as (served, client):
        answer = await client.post("/v1/completions", json=TEXT | {"user": "(x)"}, headers=headers)
        assert answer.status_code == status
        assert (await client.get("/v1/models", headers=headers)).status_code == status
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        if status == 200:
            assert (await served.hub.next(Submit)).request.tenant in ("one", "boss")
        else:
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_a_full_queue_says_when_to_come_back() -> None:
    async with http(auto=False, limits=Limits(max_requests=1)) as (served, client):
        request = client.build_request("POST", "/v1/completions", json=TEXT | {"stream": True})
        first = await client.send(request, stream=True)
        await served.hub.next(Submit)
        answer = await client.post("/v1/completions", json=TEXT)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "2"
        assert answer.headers["x-should-retry"] == "true"
        assert answer.json()["error"]["code"] == "queue_full"
        await first.aclose()


async def test_a_server_that_stops_says_so_in_every_phase() -> None:
    async with http(auto=False) as (served, client):
        request = client.build_request("POST", "/v1/completions", json=TEXT | {"stream": True})
        open_stream = await client.send(request, stream=True)
        await served.hub.next(Submit)
        served.front.end_streams()
        chunks, _ = events((await open_stream.aread()).decode())
        assert chunks[-1]["error"]["code"] == "unavailable"
        assert "[DONE]" not in chunks
        answer = await client.post("/v1/completions", json=TEXT)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200


async def test_a_fault_of_ours_shows_its_id_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with http() as (served, client):
        monkeypatch.setattr(served.front, "list_models", lambda: 1 / 0)
        answer = await client.get("/v1/models")
        assert answer.status_code == 500
        assert "internal error" in answer.json()["error"]["message"]
        assert "division" not in answer.text


async def test_the_document_lists_the_paths_that_there_are() -> None:
    async with http() as (_, client):
        document = (await client.get("/openapi.json")).json()
        for path, operations in document["paths"].items():
            for method in operations:
                place = path.replace("{name}", "letters").replace("{id}", "gone")
                answer = await client.request(method, place, json={})
                assert answer.status_code in (200, 400, 415) or "request_not_found" in answer.text, path
        stop = document["components"]["schemas"]["ChatBody"]["properties"]["stop"]
        assert {"type": "string"} in stop["anyOf"]
