"""A request that is sent again with the tokens that its client holds goes on where it stood."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.server.front.asking import ask, events_of, started, text_of, tokens, tokens_of
from tests.server.harness import make_front
from tests.server.scripted_models import END, VOCAB
from tokenmux.core.errors import InvalidRequest
from tokenmux.core.phases import PhaseChanged
from tokenmux.core.request import FinishReason
from tokenmux.core.sampling import LogProbabilities, choice_seed
from tokenmux.messages.commands import Cancel, Submit
from tokenmux.messages.reports import Broken, Finished, Tokens
from tokenmux.server.front.front import Front
from tokenmux.server.front.generation import (
    Ask,
    Chat,
    ChatMessage,
    Delivered,
    FinishInfo,
    PromptInfo,
    TokenDelta,
    TokenIds,
)
from tokenmux.server.front.traffic import TrafficRecorder
from tokenmux.testing.scripted_node import ScriptedNodes

ASKS = {
    "text": ask(max_tokens=12),
    "echo": ask(max_tokens=12, echo=True),
    "truncated": ask("xxxxxxxxxxabc", truncate_prompt_tokens=3, max_tokens=12),
    "token ids": ask(prompt=TokenIds(tuple(b"abc")), max_tokens=12),
    "chat": ask(prompt=Chat((ChatMessage("user", "hi"),)), max_tokens=12),
    "sampled": ask(max_tokens=12, temperature=1.0, seed=7, frequency_penalty=1.0, logit_bias=((65, 2.0),)),
    "stop string at the end": ask(max_tokens=20, stop_strings=("jkl",)),
    "stop string that is included": ask(max_tokens=20, stop_strings=("jkl",), include_stop_string=True),
    "stop token": ask(max_tokens=12, stop_token_ids=(ord("k"),)),
    "stop token that is too early": ask(max_tokens=12, stop_token_ids=(ord("e"),), min_tokens=4),
}


@pytest.mark.parametrize("asked", ASKS.values(), ids=ASKS)
async def test_wherever_it_is_cut_the_two_parts_are_the_whole(asked: Ask) -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        events = await events_of(front, asked)
        whole, text = tokens_of(events), text_of(events)
        assert len(whole) >= 8
        for n_held in range(1, len(whole)):
            again = await events_of(front, replace(asked, delivered=held(whole[:n_held])))
            assert tokens_of(again) == whole[n_held:]
            assert min(event.index for event in again if isinstance(event, TokenDelta)) == n_held
            before = await text_after(front, hub, asked, whole[:n_held])
            assert before + text_of(again) == text
            assert isinstance(events[-1], FinishInfo)
            expected = replace(events[-1], n_resumed=n_held, n_on_time=events[-1].n_on_time - n_held)
            assert again[-1] == expected


def held(*token_ids: Sequence[int]) -> tuple[Delivered, ...]:
    """What a client holds of each choice."""
    return tuple(map(Delivered, token_ids))


async def text_after(front: Front, hub: ScriptedNodes, asked: Ask, known: list[int]) -> str:
    """The text that a client has when it has been given these tokens and no more."""
    hub.auto = False
    hub.unread()
    try:
        async with front.open(asked) as stream:
            hub.post(Tokens(stream.id, 0, tuple(known), 100.0))
            text = ""
            n = 0
            async for event in stream:
                if isinstance(event, TokenDelta):
                    text, n = text + event.text, n + len(event.token_ids)
                if n == len(known):
                    return text
    finally:
        hub.auto = True
    raise AssertionError("the stream ended")


async def test_a_node_is_given_the_tokens_and_a_new_one_those_that_came_since() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask(delivered=held(tuple(b"de")), max_tokens=6)) as stream:
        submit = await hub.next(Submit)
        assert (submit.delivered, submit.request.n_resumed) == (tuple(b"de"), 2)
        hub.post(tokens(stream.id, 2, "f"))
        hub.post(Broken("gone"))
        assert (await hub.next(Submit)).delivered == tuple(b"def")
        hub.post(tokens(stream.id, 3, "ghi"))
        hub.post(Finished(stream.id, FinishReason.LENGTH, 100.0))
        events = [event async for event in stream]
    assert text_of(events) == "fghi"


async def test_deadlines_begin_again_and_what_was_held_is_neither_on_time_nor_late() -> None:
    hub = ScriptedNodes()
    asked = ask(delivered=held(tuple(b"defgh")), max_tokens=8, ttft_s=1.0, tpot_s=1.0)
    async with started(hub) as front, front.open(asked) as stream:
        for index, letter, at_s in ((5, "i", 101.0), (6, "j", 102.5), (7, "k", 103.0)):
            hub.post(tokens(stream.id, index, letter, at_s))
        hub.post(Finished(stream.id, FinishReason.LENGTH, 103.0))
        events = [event async for event in stream]
    end = events[-1]
    assert isinstance(end, FinishInfo)
    assert (end.n_completion, end.n_resumed, end.n_on_time) == (8, 5, 2)
    assert (end.ttft_s, end.total_s) == (1.0, 3.0)


async def test_a_stop_string_is_found_across_the_seam() -> None:
    hub = ScriptedNodes()
    asked = ask(stop_strings=("##",), delivered=held(tuple(b"ok#")))
    async with started(hub) as front, front.open(asked) as stream:
        hub.post(tokens(stream.id, 3, "#never"))
        events = [event async for event in stream]
        assert await hub.next(Cancel) == Cancel(stream.id, FinishReason.STOP)
    assert text_of(events) == ""
    assert isinstance(events[-1], FinishInfo)
    assert (events[-1].stop_string, events[-1].n_completion) == ("##", 4)


async def test_log_probabilities_go_on() -> None:
    hub = ScriptedNodes()
    told = tuple(LogProbabilities(-float(n)) for n in range(2, 4))
    async with started(hub) as front, front.open(ask(delivered=held(tuple(b"de")), logprobs=0)) as stream:
        hub.post(Tokens(stream.id, 2, tuple(b"fg"), 100.0, told))
        hub.post(Finished(stream.id, FinishReason.STOP, 100.0))
        deltas = [event async for event in stream if isinstance(event, TokenDelta)]
    assert [delta.log_probabilities for delta in deltas] == [told]


async def test_the_seed_that_the_server_drew_is_told_and_must_be_given_back() -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        info = (await events_of(front, ask(temperature=1.0)))[0]
        assert isinstance(info, PromptInfo)
        again = (await events_of(front, ask(temperature=1.0, seed=info.seed, delivered=held((100,)))))[0]
        assert isinstance(again, PromptInfo)
        assert again.seed == info.seed
        with pytest.raises(InvalidRequest, match="needs the seed: give the one that prompt_info") as caught:
            await events_of(front, ask(temperature=1.0, delivered=held((100,))))
        assert caught.value.field == "seed"
        assert await events_of(front, ask(temperature=1e-6, delivered=held((100,)))), "greedy needs none"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"delivered": held((100, VOCAB))}, rf"delivered: {VOCAB} at index 1 is out of range"),
        ({"delivered": held((1,) * 8)}, "delivered has 8 tokens, and max_tokens is 8: .*raise max_tokens"),
        ({"delivered": held((1,) * 64)}, "delivered has 64 tokens, but letters has a context of 64"),
        ({"delivered": held((100, END, 101))}, "complete output: token 0 ends it at index 1"),
        (
            {"delivered": held((100, 7)), "stop_token_ids": (7,)},
            "complete output: token 7 ends it at index 1",
        ),
        (
            {"delivered": held(tuple(b"ab##")), "stop_strings": ("##",)},
            "complete output: the stop string '##' ends it at index 3",
        ),
    ],
)
async def test_what_cannot_go_on_is_refused_with_the_remedy(changes: dict[str, object], said: str) -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        with pytest.raises(InvalidRequest, match=said) as caught:
            await events_of(front, ask(**changes))
        assert caught.value.field == "delivered"
        assert front.n_live == 0
        assert not [sent for sent in hub.unread() if isinstance(sent, Submit)]


async def test_recorded_traffic_counts_each_token_once() -> None:
    """For a plan, tokens that are brought along are input: they are computed, not drawn."""
    hub, recorder = ScriptedNodes(auto=True), TrafficRecorder(10, 0.0)
    front, _ = make_front(hub, recorder=recorder)
    await front.start()
    await events_of(front, ask(max_tokens=6, delivered=held((100, 101))))
    await front.close()
    (line,) = recorder.recorded(0.0, 100.0)
    assert (line.input_tokens, line.output_tokens) == (5, 4)


async def test_of_several_choices_only_those_go_on_that_are_not_complete() -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        asked = ask(n=3, temperature=1.0, seed=7, max_tokens=6, echo=True)
        delivered = (Delivered(is_complete=True), Delivered(), Delivered(tuple(b"de")))
        hub.unread()
        again = await events_of(front, replace(asked, delivered=delivered))
        submits = [await hub.next(Submit) for _ in range(2)]
    assert [submit.sampling.seed for submit in submits] == [choice_seed(7, 1), choice_seed(7, 2)]
    assert [submit.request.id[-2:] for submit in submits] == ["#1", "#2"]
    assert [submit.delivered for submit in submits] == [(), tuple(b"de")]
    texts = dict.fromkeys((1, 2), "")
    for delta in again:
        if isinstance(delta, TokenDelta):
            texts[delta.choice] += delta.text
    assert texts == {1: "abcdefghi", 2: "fghi"}, "a choice of which nothing is held begins with the echo"
    assert isinstance(again[0], PromptInfo)
    assert again[0].seed == 7, "that of the call"
    assert [end.choice for end in again if isinstance(end, FinishInfo)] == [1, 2]
    assert any(isinstance(event, PhaseChanged) for event in again), "one speaks for all"


@pytest.mark.parametrize(
    ("delivered", "said"),
    [
        ((Delivered(),) * 3, "delivered has 3 entries, and there are 2 choices: give one for each"),
        ((Delivered(is_complete=True),) * 2, "delivered says that all is complete"),
    ],
)
async def test_each_choice_has_an_entry_and_one_has_something_to_do(
    delivered: tuple[Delivered, ...], said: str
) -> None:
    async with started(ScriptedNodes()) as front:
        with pytest.raises(InvalidRequest, match=said):
            await events_of(front, ask(n=2, delivered=delivered))
