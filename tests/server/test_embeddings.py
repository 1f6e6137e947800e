"""Embeddings through the real front and both dialects, over nodes whose hidden states are token ids."""

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import openai
import pytest

from tests.server.harness import Served, ServerThread, serving
from tests.server.http_api.http_calls import http, nothing_lives
from tests.server.scripted_models import CONTEXT, FakeEntry, facts
from tokenmux.client import AsyncClient, CallFailed, Client
from tokenmux.core.pooling import PooledRows, Pooling
from tokenmux.core.request import FinishReason
from tokenmux.messages.commands import Cancel, Submit
from tokenmux.messages.reports import Broken, Finished, PromptPooled
from tokenmux.server.front import embeddings
from tokenmux.server.front.few_at_once import MAX_AT_ONCE
from tokenmux.server.front.limits import Limits
from tokenmux.server.http_api.http_server import HttpTransport
from tokenmux.v1 import inference_pb2

MEAN = Pooling("mean", False, 3, shortens=True)
LAST = Pooling("last", True, 3)


def entry(name: str, pooling: Pooling) -> FakeEntry:
    return FakeEntry(facts(name), embedding=pooling)


ENTRIES = (entry("mean", MEAN), entry("last", LAST), FakeEntry(facts("letters")))


@pytest.fixture
async def both() -> AsyncIterator[tuple[Served, httpx.AsyncClient]]:
    async with http(*ENTRIES) as served_and_client:
        yield served_and_client


def body(model: str = "mean", given: Any = "ace", **fields: Any) -> dict[str, Any]:
    return {"model": model, "input": given, **fields}


async def test_openais_form(both: tuple[Served, httpx.AsyncClient]) -> None:
    _, client = both
    answer = await client.post("/v1/embeddings", json=body(given=["ace", "a"], user="me", other=1))
    assert answer.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [99.0, 99.0, 99.0]},
            {"object": "embedding", "index": 1, "embedding": [97.0, 97.0, 97.0]},
        ],
        "model": "mean",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    assert answer.headers["x-tokenmux-ignored"] == "other"


@pytest.mark.parametrize("given", ["ac", ["ac"], [97, 99], [[97, 99]]])
async def test_each_form_of_input(given: Any, both: tuple[Served, httpx.AsyncClient]) -> None:
    _, client = both
    answer = await client.post("/v1/embeddings", json=body(given=given, dimensions=2))
    assert [one["embedding"] for one in answer.json()["data"]] == [[98.0, 98.0]]


async def test_an_input_may_take_the_whole_context() -> None:
    async with http(FakeEntry(facts("mean", max_context=32), embedding=MEAN)) as (_, client):
        for given in ("a" * 32, [97] * 32, ["a", "a" * 32]):
            answer = await client.post("/v1/embeddings", json=body(given=given))
            assert answer.status_code == 200, answer.text
            assert answer.json()["data"][-1]["embedding"] == [97.0, 97.0, 97.0]


async def test_base64_has_the_same_numbers(both: tuple[Served, httpx.AsyncClient]) -> None:
    _, client = both
    plain, packed = [
        (await client.post("/v1/embeddings", json=body("last", encoding_format=form))).json()["data"][0]
        for form in ("float", "base64")
    ]
    assert list(struct.unpack("<3f", base64.b64decode(packed["embedding"]))) == plain["embedding"]
    assert plain["embedding"] == pytest.approx([3**-0.5] * 3)


WRONG = [
    (body("letters"), "model", "letters makes no embeddings: its checkpoint has no pooling"),
    (body("lest"), "model", "no model named 'lest'"),
    (body(given=[]), "input", "there are no inputs"),
    (body(given=""), "input", "the prompt is empty"),
    (body(given=["a", ""]), r"input[1]", "input 1: the prompt is empty"),
    (body(given=[[97], [97, 300]]), "input[1]", "input 1: .* 300 at index 1 is out of range"),
    (
        body(given=["a", "a" * (CONTEXT + 1)]),
        "input[1]",
        f"input 1: the prompt has {CONTEXT + 1} tokens, but mean has a context of {CONTEXT}: shorten",
    ),
    (body(given=["a", 97]), "input", "valid"),
    (body(given={"text": "a"}), "input", "valid"),
    (body(given=["a"] * 2049), "input", "2049 inputs: at most 2048"),
    (body(dimensions=4), "dimensions", "dimensions 4 is not available: use 1 to 3"),
    (body(dimensions=0), "dimensions", "use 1 to 3"),
    (body("last", dimensions=2), "dimensions", "use 3, or leave it out: last does not say"),
    (body(dimensions=1.5), "dimensions", "integer"),
    (body(encoding_format="int8"), "encoding_format", "'float' or 'base64'"),
    (body(user="\n"), "user", "tenant"),
    (body(weight=0), "weight", "weight 0 is out of range"),
    (body(timeout_s=-1), "timeout_s", "timeout_s -1 is out of range"),
    (body(truncate_prompt_tokens=5), "truncate_prompt_tokens", "is not served here"),
    ({"model": "mean"}, "input", "input is missing"),
    ({"input": "a"}, "model", "model is missing"),
]


@pytest.mark.parametrize(("wrong", "field", "reason"), WRONG)
async def test_wrong_calls_name_the_field_and_compute_nothing(
    wrong: Any, field: str, reason: str, both: tuple[Served, httpx.AsyncClient]
) -> None:
    served, client = both
    answer = await client.post("/v1/embeddings", json=wrong)
    error = answer.json()["error"]
    assert answer.status_code in (400, 404)
    assert error["param"] == field
    with pytest.raises(ValueError, match=reason):
        raise ValueError(error["message"])
    assert not any(isinstance(command, Submit) for command in served.hub.unread())


async def test_more_tokens_than_a_call_may_have(
    both: tuple[Served, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = both
    monkeypatch.setattr(embeddings, "MAX_INPUT_TOKENS", 5)
    answer = await client.post("/v1/embeddings", json=body(given=["abc", "abc"]))
    assert answer.json()["error"]["message"].startswith("the inputs have 6 tokens: at most 5")


async def test_over_grpc(both: tuple[Served, httpx.AsyncClient]) -> None:
    served, _ = both
    inputs = [
        inference_pb2.EmbedInput(text="ace"),
        inference_pb2.EmbedInput(token_ids=inference_pb2.TokenIds(ids=[97])),
    ]
    answer = await served.inference.Embed(inference_pb2.EmbedRequest(model="mean", inputs=inputs))
    assert [list(one.values) for one in answer.embeddings] == [[99.0] * 3, [97.0] * 3]
    assert [one.n_prompt_tokens for one in answer.embeddings] == [3, 1]
    assert answer.usage == inference_pb2.Usage(n_prompt_tokens=4)
    with pytest.raises(grpc.aio.AioRpcError, match="input 1 is empty: give text or token_ids"):
        await served.inference.Embed(
            inference_pb2.EmbedRequest(model="mean", inputs=[inputs[0], inference_pb2.EmbedInput()])
        )


async def test_metadata_says_which_models_can(both: tuple[Served, httpx.AsyncClient]) -> None:
    served, _ = both
    ask = inference_pb2.ModelMetadataRequest
    said = await served.inference.ModelMetadata(ask(model="mean"))
    assert said.embedding == inference_pb2.EmbeddingFacts(dimensions=3, pooling="mean", shortens=True)
    assert not (await served.inference.ModelMetadata(ask(model="letters"))).HasField("embedding")


async def test_the_clients() -> None:
    async with serving(*ENTRIES) as served, AsyncClient(served.target) as client:
        found = await client.embed("mean", ["ace", [97]], dimensions=1)
        assert (found.values, found.n_prompt_tokens) == (((99.0,), (97.0,)), 4)
        assert (await client.metadata("mean")).embedding_dimensions == 3
        with pytest.raises(CallFailed, match="letters makes no embeddings") as failed:
            await client.embed("letters", ["a"])
        assert failed.value.details.fields == ("model",)
        with pytest.raises(TypeError, match="put it in a list"):
            await client.embed("mean", "ace")
        with pytest.raises(TypeError, match="token id that is not in a list"):
            await client.embed("mean", [97])  # type: ignore[list-item]


def test_the_blocking_clients() -> None:
    with ServerThread(lambda: serving(*ENTRIES, http=HttpTransport())) as server:
        with Client(server.served.target) as client:
            assert client.embed("last", ["ace"]).values == (pytest.approx((3**-0.5,) * 3),)
        url = f"http://127.0.0.1:{server.served.http_port}/v1"
        with openai.OpenAI(base_url=url, api_key="none") as theirs:
            # By default it asks for base64.
            answer = theirs.embeddings.create(model="mean", input=["ace", "a"])
            assert [one.embedding for one in answer.data] == [[99.0] * 3, [97.0] * 3]
            assert answer.usage.prompt_tokens == 4
            with pytest.raises(openai.BadRequestError, match="makes no embeddings") as caught:
                theirs.embeddings.create(model="letters", input="a")
            assert caught.value.param == "model"


async def test_a_client_that_leaves_frees_its_requests() -> None:
    async with http(*ENTRIES, auto=False) as (served, client):
        call = asyncio.create_task(client.post("/v1/embeddings", json=body(given=["ab", "cd", "ef"])))
        submits = [await served.hub.next(Submit) for _ in range(3)]
        call.cancel()
        cancelled = [(await served.hub.next(Cancel)).request for _ in range(3)]
        assert sorted(cancelled) == sorted(submit.request.id for submit in submits)
        await nothing_lives(served)


async def test_the_first_failure_ends_the_call() -> None:
    async with http(*ENTRIES, auto=False) as (served, client):
        call = asyncio.create_task(client.post("/v1/embeddings", json=body(given=["ab", "cd"])))
        first, second = [await served.hub.next(Submit) for _ in range(2)]
        served.hub.post(Finished(first.request.id, FinishReason.FAILED, 100.0, "the disk is gone"))
        assert (await served.hub.next(Cancel)).request == second.request.id
        assert "the disk is gone" in (await call).json()["error"]["message"]
        await nothing_lives(served)


async def test_many_inputs_take_few_places_at_once() -> None:
    async with http(*ENTRIES, limits=Limits(max_requests=MAX_AT_ONCE)) as (_, client):
        answer = await client.post("/v1/embeddings", json=body(given=["a"] * 100))
        assert len(answer.json()["data"]) == 100


async def test_a_node_that_breaks_in_the_middle_changes_nothing() -> None:
    """The next one begins anew: what was added before is forgotten."""
    async with http(*ENTRIES, auto=False) as (served, client):
        call = asyncio.create_task(client.post("/v1/embeddings", json=body(given="ace")))
        submit = await served.hub.next(Submit)
        served.hub.post(PromptPooled(submit.request.id, PooledRows(0, 2, struct.pack("3f", 196, 196, 196))))
        served.hub.post(Broken("it fell over"))
        again = await served.hub.next(Submit)
        assert again.pooling == "mean"
        served.hub.node.run(again)
        assert (await call).json()["data"][0]["embedding"] == [99.0] * 3


async def test_gaps_and_numbers_that_are_not_finite_are_errors() -> None:
    async with http(*ENTRIES, auto=False) as (served, client):
        for rows in (
            PooledRows(1, 2, struct.pack("3f", 1, 1, 1)),
            PooledRows(0, 3, struct.pack("3f", 1, float("nan"), 1)),
            PooledRows(0, 3, struct.pack("2f", 1, 1)),
        ):
            call = asyncio.create_task(client.post("/v1/embeddings", json=body(given="ace")))
            submit = await served.hub.next(Submit)
            served.hub.post(PromptPooled(submit.request.id, rows))
            served.hub.post(Finished(submit.request.id, FinishReason.LENGTH, 100.0))
            assert (await call).status_code >= 400


async def test_a_model_that_is_replaced_meanwhile_is_no_answer() -> None:
    async with http(*ENTRIES, auto=False) as (served, client):
        call = asyncio.create_task(client.post("/v1/embeddings", json=body(given="ace")))
        submit = await served.hub.next(Submit)
        replaced = served.front.models.find("mean")
        served.front.models.add(type(replaced)(replaced.entry))
        served.hub.node.run(submit)
        answer = await call
        assert answer.status_code == 503
        assert "was replaced" in answer.json()["error"]["message"]
