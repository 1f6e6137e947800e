"""Answers over HTTP that end early, because they are cancelled by their ids or their time is over, and the
Open Inference Protocol's paths."""

import asyncio

import pytest

from tests.server.http_api.http_calls import CHAT, TEXT, events, http, nothing_lives
from tests.server.scripted_models import FakeEntry, facts
from tokenmux.core.request import FinishReason
from tokenmux.messages.commands import Cancel, Submit
from tokenmux.messages.reports import Finished
from tokenmux.server.front.api_keys import Key, Scope

KEYS = (Key.of("one", Scope.INFERENCE, "1"), Key.of("two", Scope.INFERENCE, "2"))


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [("/v1/completions", TEXT, "cmpl-mine"), ("/v1/chat/completions", CHAT, "chatcmpl-mine")],
)
@pytest.mark.parametrize("prefixed", [True, False])
async def test_an_answer_is_cancelled_by_its_id(
    path: str, body: dict[str, object], name: str, prefixed: bool
) -> None:
    async with http(auto=False) as (served, client):
        call = asyncio.create_task(client.post(path, json=body | {"request_id": "mine"}))
        await served.hub.next(Submit)
        said = name if prefixed else "mine"
        answer = await client.post(f"{path}/{said}/cancel")
        assert (answer.status_code, answer.json()) == (200, {"id": said, "status": "cancelled"})
        await served.hub.next(Cancel)
        ended = await call
        assert ended.status_code == 409
        assert ended.json()["error"]["message"] == "request mine was cancelled by its id"
        assert ended.headers["x-should-retry"] == "false"
        await nothing_lives(served)
        gone = await client.post(f"{path}/{said}/cancel")
        error = gone.json()["error"]
        assert (gone.status_code, error["code"], error["param"]) == (404, "request_not_found", None)


async def test_a_stream_is_cancelled_with_its_reason_as_its_last_event() -> None:
    async with http(auto=False) as (served, client):
        async with client.stream("POST", "/v1/completions", json=TEXT | {"stream": True}) as stream:
            request_id = stream.headers["x-request-id"]
            assert (await client.post(f"/v1/completions/cmpl-{request_id}/cancel")).status_code == 200
            text = (await stream.aread()).decode()
        (last,) = events(text)[0]
        assert "was cancelled by its id" in last["error"]["message"]
        await nothing_lives(served)


async def test_others_do_not_see_it() -> None:
    async with http(auto=False, keys=KEYS) as (served, client):
        body = TEXT | {"request_id": "mine"}
        call = asyncio.create_task(client.post("/v1/completions", json=body, headers=bearer("1")))
        await served.hub.next(Submit)
        again = await client.post("/v1/completions", json=body, headers=bearer("1"))
        assert (again.status_code, again.json()["error"]["code"]) == (409, "already_exists")
        path = "/v1/completions/mine/cancel"
        assert (await client.post(path, headers=bearer("2"))).status_code == 404
        assert (await client.post(path)).status_code == 401
        assert (await client.post(path, headers=bearer("1"))).status_code == 200
        assert (await call).status_code == 409


async def test_the_time_that_a_client_waits_reaches_the_scheduler() -> None:
    async with http(auto=False) as (served, client):
        call = asyncio.create_task(client.post("/v1/completions", json=TEXT | {"timeout_s": 30}))
        request = (await served.hub.next(Submit)).request
        assert request.expires_s == 130.0
        served.hub.post(Finished(request.id, FinishReason.EXPIRED, 130.0))
        answer = await call
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "deadline_exceeded")
        assert answer.headers["x-should-retry"] == "false"
        wrong = await client.post("/v1/completions", json=TEXT | {"timeout_s": 0})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "timeout_s")


async def test_the_open_inference_protocol() -> None:
    huge = FakeEntry(facts("huge", n_bytes=10**6))
    async with http(huge, FakeEntry(facts("letters")), keys=KEYS) as (served, client):
        for path, answer in (("live", {"live": True}), ("ready", {"ready": True})):
            assert (await client.get(f"/v2/health/{path}")).json() == answer
        assert (await client.get("/v2")).status_code == 401
        client.headers.update(bearer("1"))
        server = (await client.get("/v2")).json()
        assert (server["name"], server["extensions"]) == ("tokenmux", [])
        assert (await client.get("/v2/models/letters")).json() == {
            "name": "letters",
            "versions": ["1"],
            "platform": "tokenmux",
            "inputs": [],
            "outputs": [],
        }
        ready = await client.get("/v2/models/letters/ready")
        assert ready.json() == {"name": "letters", "ready": True}
        assert (await client.get("/v2/models/huge/ready")).status_code == 503
        assert (await client.get("/v2/models/none/ready")).status_code == 404
        assert (await client.get("/v2/models/none")).status_code == 404
        await served.front.drain()
        assert (await client.get("/v2/health/ready")).status_code == 503
        assert (await client.get("/v2/health/live")).status_code == 200
