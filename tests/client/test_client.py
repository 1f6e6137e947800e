"""The clients against the real server over scripted nodes. Both run every test that is not about one of
them only."""

import asyncio
import inspect
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.server.harness import PATIENCE_S, Served, ServerThread, serving
from tests.server.sample_reports import node_status
from tests.server.scripted_models import CONTEXT, END, VOCAB
from tokenmux.client import (
    AsyncClient,
    CallFailed,
    Client,
    Delta,
    Finish,
    Message,
    ModelMetadata,
    Phase,
    PromptInfo,
    Residency,
    State,
    WrongArgument,
    aio,
    generation_values,
    sync,
)
from tokenmux.core.facts import ModelId
from tokenmux.messages.commands import Cancel, Load, Pin, Submit, Unload
from tokenmux.server.front.api_keys import Key, Scope
from tokenmux.v1 import inference_pb2


@contextmanager
def blocking(**options: Any) -> Iterator[tuple[ServerThread, Client]]:
    with ServerThread(lambda: serving(**options)) as server, Client(server.served.target) as client:
        yield server, client


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with asyncio.timeout(PATIENCE_S), serving() as everything:
        yield everything


# Blocking


def test_generate_returns_the_whole_answer() -> None:
    with blocking() as (_, client):
        answer = client.generate("letters", "abc", max_tokens=3, timeout_s=PATIENCE_S)
    assert (answer.text, bytes(answer.token_ids)) == ("def", b"def")
    assert (answer.prompt.model, answer.prompt.n_prompt_tokens, answer.prompt.seed) == ("letters", 3, 1234)
    finish = answer.finish
    assert (finish.reason, finish.n_completion_tokens, finish.n_tokens_on_time) == ("length", 3, 3)
    assert (finish.stop_string, finish.stop_token_id, finish.seed) == (None, None, 1234)


def test_every_option_arrives() -> None:
    with blocking() as (server, client):
        client.generate(
            "letters", [97, 98], max_tokens=4, min_tokens=2, temperature=0.5, top_k=3, top_p=0.25, seed=7,
            stop=["zz", "yy"], stop_token_ids=[9], ignore_end_tokens=True, ttft_s=1.0, tpot_s=0.5,
            tenant="team",
            weight=2.0,
        )  # fmt: skip
        submit = server.do(server.served.hub.next(Submit))
    sampling, request = submit.sampling, submit.request
    assert submit.prompt == (97, 98)
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.5, 3, 0.25, 7)
    assert (submit.min_tokens, submit.stop_token_ids) == (2, {9})
    assert (request.max_tokens, request.tenant, request.weight) == (4, "team", 2.0)
    assert (request.service.ttft_s, request.service.tpot_s) == (1.0, 0.5)


def test_stream_yields_typed_events_in_order() -> None:
    with blocking() as (_, client):
        events = list(client.stream("letters", "abc", max_tokens=9, stop="fg"))
    assert isinstance(events[0], PromptInfo)
    assert any(isinstance(event, State) and event.phase is Phase.RUNNING for event in events)
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "de"
    assert isinstance(events[-1], Finish)
    assert (events[-1].reason, events[-1].stop_string) == ("stop", "fg")


def test_chat_takes_messages_and_mappings() -> None:
    with blocking() as (server, client):
        client.chat("letters", [Message("system", "be"), {"role": "user", "content": "hi"}])  # type: ignore[list-item]
        assert server.do(server.served.hub.next(Submit)).prompt == tuple(b"s:be;u:hi;")
        with pytest.raises(TypeError, match="is not a chat message"):
            client.chat("letters", [{"role": "user"}])


def test_errors_have_code_and_remedy() -> None:
    with blocking() as (_, client):
        with pytest.raises(CallFailed, match="did you mean 'letters'") as caught:
            client.generate("lettres", "abc")
        assert (caught.value.code, caught.value.retryable) == (grpc.StatusCode.NOT_FOUND, False)
        with pytest.raises(CallFailed, match="max_tokens -1"):
            list(client.stream("letters", "abc", max_tokens=-1))


def test_a_server_that_is_not_there_is_retryable() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(CallFailed) as caught:
        client.generate("letters", "abc", timeout_s=PATIENCE_S)
    assert caught.value.retryable


def test_deadline_and_cancellation_reach_the_server() -> None:
    with blocking(auto=False) as (server, client):
        hub = server.served.hub
        with pytest.raises(CallFailed) as caught:
            client.generate("letters", "abc", timeout_s=1.0)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        server.do(hub.next(Cancel))
        with client.stream("letters", "abc") as events:
            assert isinstance(next(iter(events)), PromptInfo)
        submit = server.do(hub.next(Submit))
        assert server.do(hub.next(Cancel)) == Cancel(submit.request.id)


def test_whoever_stops_iterating_cancels() -> None:
    with blocking(auto=False) as (server, client):
        for event in client.stream("letters", "abc"):
            assert isinstance(event, PromptInfo)
            break
        server.do(server.served.hub.next(Cancel))


def test_tokenize_metadata_and_ready() -> None:
    with blocking() as (_, client):
        assert client.tokenize("letters", "abc") == (97, 98, 99)
        with pytest.raises(TypeError, match="token ids already"):
            client.tokenize("letters", [1, 2])
        assert client.metadata("letters") == ModelMetadata("letters", CONTEXT, VOCAB, True, (END,))
        assert client.ready()
        assert client.ready("letters")
        with pytest.raises(CallFailed):
            client.ready("other")


def test_models_are_managed(tmp_path: Path) -> None:
    with blocking() as (server, client):
        hub = server.served.hub
        assert client.models.register("more", str(tmp_path)).name == "more"
        assert [model.name for model in client.models.list()] == ["letters", "more"]
        assert client.models.load("more").residency is Residency.UNKNOWN
        assert server.do(hub.next(Load)).model == "more"
        assert client.models.pin("more").pinned
        assert server.do(hub.next(Pin)) == Pin(ModelId("more"), True)
        assert not client.models.pin("more", False).pinned
        client.models.unload("more")
        assert server.do(hub.next(Unload)).model == "more"
        client.models.unregister("more")
        with pytest.raises(CallFailed, match="no model named 'more'"):
            client.models.get("more")


def test_status_and_watching() -> None:
    with blocking() as (server, client):
        watch = client.pool.watch()
        assert next(watch).instances == ()
        server.do(post_status(server.served))
        status = next(watch)
        watch.close()  # type: ignore[attr-defined]
        assert status.instances[0].device == "virtual GPU"
        assert status.models[0].residency is Residency.RESIDENT
        assert client.pool.status().models == status.models


async def post_status(served: Served) -> None:
    served.hub.post(node_status("letters"))


def test_a_key_opens_the_server() -> None:
    keys = [Key.of("team", Scope.INFERENCE, "sesame")]
    with ServerThread(lambda: serving(keys=keys)) as server:
        with Client(server.served.target) as client, pytest.raises(CallFailed, match="needs an API key"):
            client.generate("letters", "abc")
        with Client(server.served.target, api_key="sesame") as client:
            assert client.generate("letters", "abc", max_tokens=1).text == "d"
            with pytest.raises(CallFailed, match="needs an admin key"):
                client.models.list()


@pytest.mark.parametrize("timeout_s", [1e9, 1e300, math.inf])
def test_a_deadline_that_never_comes_is_none(timeout_s: float) -> None:
    """gRPC's arithmetic would overflow, and the call would be over at once."""
    with blocking() as (_, client):
        assert client.generate("letters", "abc", max_tokens=3, timeout_s=timeout_s).text == "def"
        assert client.tokenize("letters", "a", timeout_s=timeout_s) == (97,)
        assert client.ready(timeout_s=timeout_s)


# Asyncio


async def test_an_async_call_may_have_a_deadline_that_never_comes(served: Served) -> None:
    async with AsyncClient(served.target) as client:
        answer = await client.generate("letters", "abc", max_tokens=3, timeout_s=math.inf)
        assert answer.text == "def"
        assert await client.ready(timeout_s=1e300)


async def test_a_deadline_is_a_number(served: Served) -> None:
    with Client(served.target) as client, pytest.raises(WrongArgument, match="NaN is not a time"):
        client.ready(timeout_s=math.nan)
    async with AsyncClient(served.target) as client:
        with pytest.raises(WrongArgument, match="NaN is not a time"):
            await client.generate("letters", "abc", timeout_s=math.nan)


async def test_async_generate_stream_and_chat(served: Served) -> None:
    async with AsyncClient(served.target) as client:
        assert (await client.generate("letters", "abc", max_tokens=3)).text == "def"
        events = [event async for event in client.stream("letters", "abc", max_tokens=3)]
        assert isinstance(events[0], PromptInfo)
        assert isinstance(events[-1], Finish)
        assert "".join(event.text for event in events if isinstance(event, Delta)) == "def"
        assert (await client.chat("letters", [Message("user", "hi")], max_tokens=1)).text == "<"


async def test_async_calls_run_at_the_same_time() -> None:
    async with (
        asyncio.timeout(PATIENCE_S),
        serving(auto=False) as served,
        AsyncClient(served.target) as client,
    ):
        calls = [asyncio.create_task(client.generate("letters", text, max_tokens=2)) for text in "abc"]
        submits = [await served.hub.next(Submit) for _ in calls]
        for submit in reversed(submits):
            served.hub.node.run(submit)
        assert [answer.text for answer in await asyncio.gather(*calls)] == ["bc", "cd", "de"]


async def test_async_errors_deadlines_and_cancellation() -> None:
    async with (
        asyncio.timeout(PATIENCE_S),
        serving(auto=False) as served,
        AsyncClient(served.target) as client,
    ):
        with pytest.raises(CallFailed, match="did you mean 'letters'"):
            await client.generate("lettres", "abc")
        # Long enough to reach the node on a busy machine, and then it runs out: the node never answers.
        call = asyncio.create_task(client.generate("letters", "abc", timeout_s=1.0))
        await served.hub.next(Submit)
        with pytest.raises(CallFailed) as caught:
            await call
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await served.hub.next(Cancel)
        task = asyncio.create_task(client.generate("letters", "abc"))
        await served.hub.next(Submit)
        task.cancel()
        await served.hub.next(Cancel)
        async with client.stream("letters", "abc") as events:
            assert isinstance(await anext(aiter(events)), PromptInfo)
        await served.hub.next(Cancel)


async def test_async_tokenize_metadata_models_and_pool(served: Served, tmp_path: Path) -> None:
    async with AsyncClient(served.target) as client:
        assert await client.tokenize("letters", "abc") == (97, 98, 99)
        assert (await client.metadata("letters")).max_context == CONTEXT
        assert await client.ready()
        assert await client.ready("letters")
        assert (await client.models.register("more", str(tmp_path))).name == "more"
        assert [model.name for model in await client.models.list()] == ["letters", "more"]
        assert (await client.models.get("more")).weight_bytes == 1000
        await client.models.load("more")
        await client.models.unload("more")
        assert (await client.models.pin("more")).pinned
        await client.models.unregister("more", force=True)
        watch = client.pool.watch()
        assert (await anext(watch)).n_requests == 0
        served.hub.post(node_status("letters"))
        assert (await anext(watch)).instances[0].arena_bytes == 10_000
        assert (await client.pool.status()).instances[0].n_steps == 12


# Both


def test_what_the_client_does_not_know_yet_is_no_error() -> None:
    """A newer server may send events and enum values that did not exist when this client was made."""
    assert generation_values.event(inference_pb2.GenerateStreamResponse()) is None
    state = inference_pb2.GenerateStreamResponse(state=inference_pb2.RequestState(phase=99))  # type: ignore[arg-type]
    assert generation_values.event(state) == State(Phase.UNKNOWN, 0, 0.0)


@pytest.mark.parametrize(
    ("blocking", "awaited"),
    [
        (sync.Client, aio.AsyncClient),
        (sync.Models, aio.AsyncModels),
        (sync.Pool, aio.AsyncPool),
        (sync.Planning, aio.AsyncPlanning),
    ],
)
def test_both_clients_have_the_same_methods(blocking: type, awaited: type) -> None:
    def parameters(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert parameters(blocking) == parameters(awaited)


def test_importing_the_client_brings_nothing_else_of_ours() -> None:
    script = (
        "import sys, tokenmux.client\n"
        "ours = [name for name in sys.modules if name.startswith('tokenmux.')]\n"
        "print([name for name in ours if not name.startswith(('tokenmux.client', 'tokenmux.v1'))])\n"
        "print([name for name in ('torch', 'transformers', 'pydantic', 'yaml') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n") == ["[]", "[]", ""]
