"""The front and what strangers wrote: bounds before work, one identity from tokenizing to submitting,
removal in order."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import grpc
import pytest

from tests.server.harness import PATIENCE_S, make_front, serving
from tests.server.scripted_models import CONTEXT, FakeCatalogue, FakeEntry, LetterTokenizer, facts
from tokenmux.core.errors import ErrorCode, InUse, InvalidRequest, NotFound, Overloaded, TokenmuxError
from tokenmux.messages.commands import Submit, Unregister
from tokenmux.server.front.front import Front
from tokenmux.server.front.generation import Ask, Chat, ChatMessage, Text
from tokenmux.server.front.limits import Limits
from tokenmux.server.front.served_models import ServedModel
from tokenmux.server.front.shown_models import ShownModel
from tokenmux.server.grpc_api.model_messages import model_message
from tokenmux.server.grpc_api.status import refusal_of
from tokenmux.testing.scripted_node import (
    ScriptedNodes,
)
from tokenmux.v1 import inference_pb2, models_pb2, pool_pb2


@asynccontextmanager
async def fronted(
    hub: ScriptedNodes, *entries: FakeEntry, limits: Limits | None = None
) -> AsyncIterator[tuple[Front, FakeCatalogue]]:
    front, catalogue = make_front(hub, *entries, limits=limits)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await front.start()
            yield front, catalogue
    finally:
        await front.close()


class Gate:
    """Holds a tokenizer's thread until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        self.opened.wait(PATIENCE_S)

    async def is_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, PATIENCE_S)


@dataclass
class Shifted(LetterTokenizer):
    """Another vocabulary: every letter is the next one's token."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) + 1 for letter in text]


async def test_a_prompt_is_tokenized_by_the_model_that_runs_it() -> None:
    """The model is unregistered, and another registered under its name, while a request waits for the
    tokenizer."""
    gate, hub = Gate(), ScriptedNodes(auto=True)
    old = FakeEntry(facts("letters"), letters=LetterTokenizer(gate=gate))
    async with fronted(hub, old) as (front, catalogue):
        asking = asyncio.create_task(anext(aiter_of(front, Ask("letters", Text("abc")))))
        await gate.is_reached()
        await front.unregister("letters", force=True)
        new = FakeEntry(replace(facts("letters"), vocab_size=200), letters=Shifted())
        catalogue.kept["letters"] = new
        front.models.add(ServedModel(new))
        gate.opened.set()
        await asking
        assert (await hub.next(Submit)).prompt == tuple(b"bcd")


async def test_a_prompt_whose_model_went_meanwhile_is_refused() -> None:
    gate = Gate()
    entry = FakeEntry(facts("letters"), letters=LetterTokenizer(gate=gate))
    async with fronted(ScriptedNodes(), entry) as (front, _):
        asking = asyncio.create_task(anext(aiter_of(front, Ask("letters", Text("abc")))))
        await gate.is_reached()
        await front.unregister("letters")
        gate.opened.set()
        with pytest.raises(NotFound):
            await asking


async def aiter_of(front: Front, ask: Ask) -> AsyncIterator[None]:
    async with front.open(ask):
        yield None


def _never() -> None:
    raise AssertionError("the prompt was tokenized")


@pytest.mark.parametrize(
    "prompt",
    [
        Text("x" * 100 * (CONTEXT + 2)),
        Chat(tuple(ChatMessage("user", "x" * 100) for _ in range(CONTEXT + 2))),
    ],
)
async def test_text_that_cannot_fit_is_refused_before_it_is_tokenized(prompt: Text | Chat) -> None:
    entry = FakeEntry(facts("letters"), letters=LetterTokenizer(gate=_never))
    async with fronted(ScriptedNodes(), entry) as (front, _):
        with pytest.raises(InvalidRequest, match="characters, which cannot fit into the context"):
            await front.tokenize("letters", prompt)
        with pytest.raises(InvalidRequest, match="characters, which cannot fit into the context"):
            async with front.open(Ask("letters", prompt)):
                pass


async def test_tokenizing_takes_a_place_in_the_queue_and_gives_it_back() -> None:
    gate = Gate()
    entry = FakeEntry(facts("letters"), letters=LetterTokenizer(gate=gate))
    async with fronted(ScriptedNodes(), entry, limits=Limits(max_requests=1)) as (front, _):
        first = asyncio.create_task(front.tokenize("letters", Text("abc")))
        await gate.is_reached()
        assert front.n_live == 1
        with pytest.raises(Overloaded):
            await front.tokenize("letters", Text("abc"))
        first.cancel()
        await asyncio.wait((first,))
        assert front.n_live == 0
        gate.opened.set()
        assert await front.tokenize("letters", Text("abc")) == tuple(b"abc")


class Panic(BaseException):
    """As pyo3_runtime.PanicException: tokenizers raises it where Rust panics."""


async def test_a_panic_in_a_tokenizer_ends_the_call() -> None:
    def gate() -> None:
        raise Panic

    async with serving(FakeEntry(facts("letters"), letters=LetterTokenizer(gate=gate))) as served:
        request = inference_pb2.GenerateRequest(model="letters", text="a")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.inference.Generate(request, timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_a_front_with_a_stuck_tokenizer_closes_at_once() -> None:
    gate = Gate()
    front, _ = make_front(ScriptedNodes(), FakeEntry(facts("letters"), letters=LetterTokenizer(gate=gate)))
    await front.start()
    asking = asyncio.create_task(front.tokenize("letters", Text("a")))
    await gate.is_reached()
    began_s = time.monotonic()
    await front.close()
    assert time.monotonic() - began_s < PATIENCE_S / 2
    asking.cancel()
    await asyncio.wait((asking,))
    gate.opened.set()


async def test_a_model_that_cannot_be_read_is_listed_and_breaks_no_call() -> None:
    async with serving(FakeEntry(facts("bad")), FakeEntry(facts("letters"))) as served:
        models = (await served.models.ListModels(models_pb2.ListModelsRequest())).models
        assert [(model.name, model.refusal) for model in models] == [
            ("bad", "bad: the manifest is damaged"),
            ("letters", ""),
        ]
        status = (await served.pool.GetStatus(pool_pb2.GetStatusRequest())).status
        assert [model.name for model in status.models] == ["bad", "letters"]
        async for update in served.pool.WatchStatus(pool_pb2.WatchStatusRequest()):
            assert len(update.status.models) == 2
            break
        await served.models.UnregisterModel(models_pb2.UnregisterModelRequest(name="bad"))
        assert [served.name for served in served.front.models] == ["letters"]


@pytest.mark.parametrize("max_context", [-5, 10**30])
def test_facts_out_of_range_are_a_refusal_and_no_error_of_the_call(max_context: int) -> None:
    shown = model_message(
        ShownModel("m", replace(facts("m"), max_context=max_context), False, "", None, None)
    )
    assert (shown.name, shown.max_context) == ("m", 0)
    assert "out of range" in shown.refusal


async def test_files_go_first_and_a_disk_that_refuses_changes_nothing() -> None:
    hub = ScriptedNodes(auto=True)
    async with fronted(hub) as (front, catalogue):
        catalogue.refuses_removal = TokenmuxError("/models: cannot be written (Read-only file system)")
        with pytest.raises(TokenmuxError, match="Read-only") as caught:
            await front.unregister("letters")
        refusal = refusal_of(caught.value)
        assert (refusal.code, refusal.message) == (grpc.StatusCode.FAILED_PRECONDITION, str(caught.value))
        assert not any(isinstance(message, Unregister) for message in hub.unread())
        assert await front.tokenize("letters", Text("a")) == (97,)


async def test_a_model_that_the_node_does_not_let_go_is_served_on() -> None:
    hub = ScriptedNodes(auto=True)
    hub.refuses["letters"], hub.codes["letters"] = "", ErrorCode.IN_USE
    async with fronted(hub) as (front, catalogue):
        hub.refuses["letters"] = "being loaded"
        with pytest.raises(InUse, match="being loaded"):
            await front.unregister("letters")
        assert catalogue.names() == ["letters"]
        assert await front.tokenize("letters", Text("a")) == (97,)


async def test_force_waits_for_what_is_under_way() -> None:
    hub = ScriptedNodes(auto=True)
    hub.refuses["letters"], hub.codes["letters"] = "", ErrorCode.IN_USE
    async with fronted(hub) as (front, catalogue):
        hub.refuses["letters"] = "being loaded"
        removing = asyncio.create_task(front.unregister("letters", force=True))
        await hub.next(Unregister)
        hub.refuses.clear()
        front.changes.notify()
        await removing
        assert (catalogue.names(), len(front.models)) == ([], 0)
