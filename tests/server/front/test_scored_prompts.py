"""max_tokens 0: the prompt is scored or echoed, and nothing is drawn."""

import pytest

from tests.server.front.asking import ask, events_of, started
from tests.server.front.test_prompt_told import prompt_of, told
from tokenmux.core.errors import InvalidRequest
from tokenmux.core.request import FinishReason
from tokenmux.messages.commands import Submit
from tokenmux.messages.reports import Broken, Finished
from tokenmux.server.front.generation import Delivered, FinishInfo, PromptInfo, TokenDelta
from tokenmux.testing.scripted_node import ScriptedNodes


async def test_nothing_is_drawn_and_all_is_told() -> None:
    hub = ScriptedNodes()
    asked = ask("abcdef", max_tokens=0, prompt_logprobs=1, echo=True)
    async with started(hub) as front, front.open(asked) as stream:
        submit = await hub.next(Submit)
        assert not submit.draws
        hub.post(told(stream.id, 1, 2))
        hub.post(Broken("killed"))
        assert not (await hub.next(Submit)).draws
        hub.post(told(stream.id, 1, 5))
        hub.post(Finished(stream.id, FinishReason.LENGTH, 101.5, n_cached=3))
        events = [event async for event in stream]
    info, finish = events[0], events[-1]
    assert isinstance(info, PromptInfo)
    assert info.max_tokens == 0
    assert [event for event in events if isinstance(event, TokenDelta)] == [TokenDelta(0, (), "abcdef")]
    assert len(prompt_of(events).log_probabilities) == 6
    assert isinstance(finish, FinishInfo)
    assert (finish.reason, finish.n_completion, finish.n_prompt) == (FinishReason.LENGTH, 0, 6)
    assert (finish.n_cached, finish.ttft_s, finish.total_s) == (3, 1.5, 1.5)


async def test_a_client_that_lost_its_server_asks_again() -> None:
    hub = ScriptedNodes(auto=True)
    async with started(hub) as front:
        again = ask("abc", max_tokens=0, echo=True, delivered=(Delivered(),))
        assert isinstance((await events_of(front, again))[-1], FinishInfo)
        with pytest.raises(InvalidRequest, match="has 1 tokens, and max_tokens is 0"):
            await events_of(front, ask("abc", max_tokens=0, echo=True, delivered=(Delivered((5,)),)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tokens": 0}, "max_tokens 0 draws nothing"),
        ({"max_tokens": 0, "logprobs": 1}, "max_tokens 0 draws nothing"),
        ({"max_tokens": -1, "echo": True}, "max_tokens -1 is out of range"),
        ({"max_tokens": 0, "echo": True, "min_tokens": 1}, "min_tokens 1 is more than max_tokens 0"),
    ],
)
async def test_what_asks_for_nothing_is_refused(options: dict[str, object], said: str) -> None:
    async with started(ScriptedNodes(auto=True)) as front:
        with pytest.raises(InvalidRequest, match=f"^{said}") as refused:
            await events_of(front, ask("abc", **options))
    assert refused.value.named in ("max_tokens", "min_tokens")
