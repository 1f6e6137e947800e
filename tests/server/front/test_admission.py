"""What is admitted reaches the node whole; what is refused costs no other request anything."""

import asyncio
import threading

import pytest

from tests.server.front.asking import ask, events_of, started, text_of, until
from tests.server.harness import PATIENCE_S
from tests.server.scripted_models import END, VOCAB, FakeEntry, LetterTokenizer, facts
from tokenmux.core.errors import (
    DoesNotFit,
    InvalidRequest,
    NotFound,
    Overloaded,
    TokenmuxError,
)
from tokenmux.core.request import ServiceLevel
from tokenmux.messages.codec import ORDERS
from tokenmux.messages.commands import Cancel, Order, Submit, Ticket
from tokenmux.server.front.generation import (
    Chat,
    ChatMessage,
    PromptInfo,
    Text,
    TokenIds,
)
from tokenmux.server.front.limits import Limits
from tokenmux.testing.scripted_node import (
    ScriptedNodes,
)


async def test_everything_that_is_asked_reaches_the_node() -> None:
    hub = ScriptedNodes(auto=True)
    question = ask(
        max_tokens=4, min_tokens=2, temperature=0.5, top_k=3, top_p=0.25, seed=7, stop_token_ids=(9,),
        ttft_s=1.0, tpot_s=0.5, tenant="team", weight=2.0,
    )  # fmt: skip
    async with started(hub) as front:
        await events_of(front, question)
        submit = await hub.next(Submit)
    request, sampling = submit.request, submit.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.5, 3, 0.25, 7)
    assert (submit.min_tokens, submit.stop_token_ids) == (2, {END, 9})
    assert (request.n_prompt, request.max_tokens, request.arrival_s) == (3, 4, 100.0)
    assert (request.service, request.tenant, request.weight) == (ServiceLevel(1.0, 0.5), "team", 2.0)


async def test_a_top_k_of_more_than_the_vocabulary_is_all_of_it() -> None:
    """No message holds an integer of more than 64 bits."""
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        await events_of(front, ask(top_k=2**64))
        submit = await hub.next(Submit)
    assert submit.sampling.top_k == VOCAB
    assert ORDERS.encode(Order(Ticket(1), submit))


async def test_chat_goes_through_the_template_and_token_ids_do_not() -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        await events_of(front, ask(prompt=Chat((ChatMessage("user", "hi"),))))
        assert (await hub.next(Submit)).prompt == tuple(b"u:hi;")
        await events_of(front, ask(prompt=TokenIds((5, 6)), ignore_end_tokens=True))
        submit = await hub.next(Submit)
    assert submit.prompt == (5, 6)
    assert submit.stop_token_ids == frozenset()


async def test_a_seed_is_drawn_once_and_told() -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        events = await events_of(front, ask(temperature=1.0))
        submit = await hub.next(Submit)
    assert submit.sampling.seed == 1234
    assert isinstance(events[0], PromptInfo)
    assert events[0].seed == 1234


WRONG: list[tuple[dict[str, object], type[TokenmuxError], str]] = [
    ({"model": "leters"}, NotFound, "did you mean 'letters'"),
    ({"model": ""}, NotFound, "no model was named"),
    ({"prompt": Text("")}, InvalidRequest, "empty"),
    ({"prompt": TokenIds(())}, InvalidRequest, "no token ids"),
    ({"prompt": TokenIds((1, VOCAB))}, InvalidRequest,
     "256 at index 1 is out of range: letters has token ids 0 to 255"),
    ({"prompt": Text("\u0101")}, InvalidRequest, "out of range"),
    ({"prompt": Chat(())}, InvalidRequest, "no messages"),
    ({"prompt": Chat((ChatMessage("", "x"),))}, InvalidRequest, "no role"),
    ({"prompt": Text("x" * 64)}, InvalidRequest, "shorten the prompt to at most 63 tokens"),
    ({"max_tokens": 62}, InvalidRequest, "use max_tokens of at most 61"),
    ({"max_tokens": 60}, DoesNotFit, "ask for at most 60"),
    ({"max_tokens": 0}, InvalidRequest, "at least 1"),
    ({"max_tokens": -1}, InvalidRequest, "max_tokens -1 is out of range"),
    ({"min_tokens": -1}, InvalidRequest, "negative"),
    ({"max_tokens": 2, "min_tokens": 3}, InvalidRequest, "more than max_tokens 2"),
    ({"temperature": -0.1}, InvalidRequest, "temperature"),
    ({"temperature": float("nan")}, InvalidRequest, "temperature"),
    ({"temperature": float("inf")}, InvalidRequest, "temperature"),
    ({"top_k": -1}, InvalidRequest, "top_k"),
    ({"top_p": 0.0}, InvalidRequest, "top_p"),
    ({"top_p": 1.5}, InvalidRequest, "top_p"),
    ({"seed": -1}, InvalidRequest, "seed"),
    ({"seed": 2**64}, InvalidRequest, "seed"),
    ({"weight": 0.0}, InvalidRequest, "weight"),
    ({"weight": 101.0}, InvalidRequest, "weight"),
    ({"tenant": "t" * 65}, InvalidRequest, "tenant"),
    ({"ttft_s": 0.0}, InvalidRequest, "ttft_s"),
    ({"tpot_s": float("inf")}, InvalidRequest, "tpot_s"),
    ({"stop_strings": ("x",) * 17}, InvalidRequest, "at most 16"),
    ({"stop_strings": ("",)}, InvalidRequest, "empty"),
    ({"stop_strings": ("x" * 257,)}, InvalidRequest, "at most 256"),
    ({"stop_token_ids": (1,) * 65}, InvalidRequest, "at most 64"),
    ({"stop_token_ids": (300,)}, InvalidRequest, "stop token ids: 300"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "kind", "message"), WRONG, ids=lambda case: str(case)[:40])
async def test_wrong_input_is_refused_before_the_node_hears_of_it(
    changes: dict[str, object], kind: type[TokenmuxError], message: str
) -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        with pytest.raises(kind, match=message):
            await events_of(front, ask(**changes))
        assert not [sent for sent in hub.unread() if isinstance(sent, Submit)]
        assert front.n_live == 0
        assert text_of(await events_of(front, ask(max_tokens=2))) == "de"


async def test_chat_without_a_template_is_refused() -> None:
    hub = ScriptedNodes(auto=True)
    plain = FakeEntry(facts("letters"), letters=LetterTokenizer(has_chat_template=False))
    async with started(hub, plain) as front:
        with pytest.raises(InvalidRequest, match="no chat template"):
            await events_of(front, ask(prompt=Chat((ChatMessage("user", "hi"),))))


async def test_requests_in_the_tokenizer_count_for_the_queue() -> None:
    hub, gate = ScriptedNodes(auto=True), threading.Event()
    slow = FakeEntry(facts("letters"), letters=LetterTokenizer(gate=lambda: gate.wait(PATIENCE_S) and None))
    async with started(hub, slow, limits=Limits(max_requests=1)) as front:
        first = asyncio.create_task(events_of(front, ask()))
        await until(lambda: front.n_live == 1)
        with pytest.raises(Overloaded):
            await events_of(front, ask())
        gate.set()
        assert text_of(await first) == "defghijk"


async def test_tokenizing_does_not_block_other_requests() -> None:
    hub, gate = ScriptedNodes(auto=True), threading.Event()
    slow = FakeEntry(facts("slow"), letters=LetterTokenizer(gate=lambda: gate.wait(PATIENCE_S) and None))
    async with started(hub, slow, FakeEntry(facts("letters"))) as front:
        waiting = asyncio.create_task(events_of(front, ask(model="slow")))
        assert text_of(await events_of(front, ask())) == "defghijk"
        assert not waiting.done()
        gate.set()
        assert text_of(await waiting) == "defghijk"


async def test_leaving_while_the_prompt_is_tokenized_submits_nothing() -> None:
    hub, gate = ScriptedNodes(auto=True), threading.Event()
    slow = FakeEntry(facts("letters"), letters=LetterTokenizer(gate=lambda: gate.wait(PATIENCE_S) and None))
    async with started(hub, slow) as front:
        task = asyncio.create_task(events_of(front, ask()))
        await until(lambda: front.n_live == 1)
        task.cancel()
        await asyncio.wait([task])
        gate.set()
        assert front.n_live == 0
        assert not [sent for sent in hub.unread() if isinstance(sent, Submit | Cancel)]
