"""What else a request can ask of its prompt, its text and its name."""

import pytest

from tests.server.front.asking import ask, events_of, started, text_of, tokens, tokens_of
from tests.server.scripted_models import END
from tokenmux.core.errors import AlreadyExists, InvalidRequest
from tokenmux.core.sampling import LogProbabilities
from tokenmux.messages.commands import Submit
from tokenmux.messages.reports import Tokens
from tokenmux.server.front.generation import Chat, ChatMessage, FinishInfo, Text, TokenDelta, TokenIds
from tokenmux.testing.scripted_node import ScriptedNodes


async def test_echo_puts_the_prompt_before_the_output() -> None:
    async with started(ScriptedNodes(auto=True)) as front:
        assert text_of(await events_of(front, ask(max_tokens=3, echo=True))) == "abcdef"
        ids = TokenIds([ord("x"), END, ord("y")])
        assert text_of(await events_of(front, ask(prompt=ids, max_tokens=2, echo=True))) == "xyz{"
        events = await events_of(front, ask(prompt=ids, max_tokens=2, echo=True, skip_special_tokens=False))
        assert text_of(events) == "x\0yz{"
        assert len(tokens_of(events)) == 2
        with pytest.raises(InvalidRequest, match="echo repeats a prompt of text or token ids"):
            await events_of(front, ask(prompt=Chat((ChatMessage("user", "a"),)), echo=True))


@pytest.mark.parametrize(("include", "text"), [(False, "ok"), (True, "ok##")])
async def test_a_stop_string_can_be_returned(include: bool, text: str) -> None:
    hub = ScriptedNodes()
    asked = ask(stop_strings=("##",), include_stop_string=include)
    async with started(hub) as front, front.open(asked) as stream:
        hub.post(tokens(stream.id, 0, "ok#"))
        hub.post(tokens(stream.id, 3, "#never"))
        events = [event async for event in stream]
    assert text_of(events) == text
    assert isinstance(events[-1], FinishInfo)
    assert events[-1].stop_string == "##"


async def test_a_long_prompt_is_cut_from_the_left_if_that_is_asked() -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        for prompt in (Text("a" * 70 + "bcd"), TokenIds(b"a" * 70 + b"bcd")):
            with pytest.raises(InvalidRequest, match="the prompt has 73 tokens"):
                await events_of(front, ask(prompt=prompt))
            asked = ask(prompt=prompt, truncate_prompt_tokens=5, max_tokens=2, echo=True)
            assert text_of(await events_of(front, asked)) == "aabcdef"
            assert bytes((await hub.next(Submit)).prompt) == b"aabcd"
        with pytest.raises(InvalidRequest, match="truncate_prompt_tokens 0 is out of range"):
            await events_of(front, ask(truncate_prompt_tokens=0))


async def test_a_request_can_bring_an_id_which_is_its_own_while_it_lives() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front:
        async with front.open(ask(request_id="mine:1", tenant="a")) as stream:
            assert (await anext(stream)).request == "mine:1"
            with pytest.raises(AlreadyExists, match="request_id mine:1 belongs to a request that is live"):
                await events_of(front, ask(request_id="mine:1", tenant="a"))
            assert front.n_live == 1
            async with front.open(ask(request_id="mine:1", tenant="b")) as other:
                assert other.id != stream.id, "tenants need not agree, and nodes must not mix them up"
        hub.answer_cancels = False
        async with front.open(ask(request_id="mine:1", tenant="a")) as stream:
            pass
        async with front.open(ask(request_id="mine:1", tenant="a")) as again:
            assert again.id != stream.id, "the node may not have let go of the last one"
        for bad in ("-a", "a b", "x" * 129, "a\n", "é"):
            with pytest.raises(InvalidRequest, match="request_id is not a usable id"):
                await events_of(front, ask(request_id=bad))


async def test_log_probabilities_stay_with_their_tokens_however_they_arrive() -> None:
    """Deltas that melt, tokens that a new node repeats, and the cut at a stop string."""
    hub = ScriptedNodes()
    told = tuple(LogProbabilities(-float(n), ((n, -0.5),)) for n in range(5))
    async with started(hub) as front, front.open(ask(stop_strings=("#",), logprobs=1)) as stream:
        assert (await hub.next(Submit)).sampling.n_likeliest == 1
        hub.post(Tokens(stream.id, 0, tuple(b"ab"), 100.0, told[:2]))
        hub.post(Tokens(stream.id, 1, tuple(b"bc"), 100.0, told[1:3]))
        hub.post(Tokens(stream.id, 3, tuple(b"#d"), 100.0, told[3:]))
        events = [event async for event in stream]
    deltas = [event for event in events if isinstance(event, TokenDelta)]
    assert tokens_of(events) == list(b"abc#")
    assert tuple(one for delta in deltas for one in delta.log_probabilities) == told[:4]
