"""Log-probabilities of a prompt on their way from the node to the client."""

from collections.abc import Iterable

from tests.server.front.asking import ask, events_of, started, tokens, until
from tests.server.front.test_choices import submitted
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.core.sampling import LogProbabilities
from tokenmux.messages.commands import Pause, Submit
from tokenmux.messages.reports import Broken, Finished, PromptTold
from tokenmux.server.front.generation import PromptDelta, PromptInfo, StreamEvent, TokenDelta, TokenIds
from tokenmux.server.front.limits import Limits
from tokenmux.testing.scripted_node import ScriptedNodes

TOLD = tuple(LogProbabilities(-float(n), ((n, -0.5),)) for n in range(1, 9))


def told(request: RequestId, index: int, n: int) -> PromptTold:
    return PromptTold(request, index, TOLD[index - 1 : index - 1 + n])


def prompt_of(events: Iterable[StreamEvent]) -> PromptDelta:
    """All that was told of the prompt, in order and without gaps."""
    ids: list[int] = []
    found: list[LogProbabilities | None] = []
    for event in events:
        if isinstance(event, PromptDelta):
            assert event.index == len(ids) == len(found)
            ids += event.token_ids
            found += event.log_probabilities
    return PromptDelta(0, tuple(ids), tuple(found))


async def test_the_first_token_has_none_and_a_new_node_goes_on_where_the_last_one_broke() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask("abcdef", prompt_logprobs=1)) as stream:
        assert (await hub.next(Submit)).n_prompt_likeliest == 1
        hub.post(told(stream.id, 1, 2))
        hub.post(Broken("killed"))
        assert (await hub.next(Submit)).n_prompt_likeliest == 1
        hub.post(told(stream.id, 1, 4))
        hub.post(told(stream.id, 5, 1))
        hub.post(tokens(stream.id, 0, "x"))
        hub.post(Broken("killed"))
        again = await hub.next(Submit)
        assert (again.n_prompt_likeliest, again.delivered) == (None, tuple(b"x"))
        hub.post(Finished(stream.id, FinishReason.LENGTH, 100.0))
        events = [event async for event in stream]
    assert prompt_of(events) == PromptDelta(0, tuple(b"abcdef"), (None, *TOLD[:5]))
    kinds = [type(event) for event in events if isinstance(event, PromptDelta | TokenDelta)]
    assert kinds.index(TokenDelta) == len(kinds) - 1


async def test_one_token_has_nothing_to_wait_for() -> None:
    async with started(ScriptedNodes(auto=True)) as front:
        events = await events_of(front, ask(prompt=TokenIds([98]), prompt_logprobs=0, max_tokens=1))
    assert prompt_of(events) == PromptDelta(0, (98,), (None,))


async def test_who_does_not_ask_is_not_told() -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        events = await events_of(front, ask(max_tokens=1))
        assert (await hub.next(Submit)).n_prompt_likeliest is None
    assert not any(isinstance(event, PromptDelta) for event in events)


async def test_one_choice_tells_of_the_prompt_for_all() -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        await events_of(front, ask(n=3, prompt_logprobs=2, max_tokens=1))
        asked = [submit.n_prompt_likeliest for submit in await submitted(hub, 3)]
    assert asked == [2, None, None]


async def test_what_is_told_of_a_prompt_is_not_piled_up_for_who_does_not_read() -> None:
    hub = ScriptedNodes()
    limits = Limits(buffer_tokens=4)
    async with started(hub, limits=limits) as front, front.open(ask("abcdef", prompt_logprobs=0)) as stream:
        hub.post(told(stream.id, 1, 3))
        assert await hub.next(Pause) == Pause(stream.id)
        assert isinstance(await anext(stream), PromptInfo)
        assert prompt_of([await anext(stream)]).token_ids == tuple(b"abcd")
        await until(lambda: not stream.choices[0].paused)
