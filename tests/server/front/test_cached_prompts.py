"""What the end of a choice tells of the prefix cache: what the node that drew its first token said."""

from tests.server.front.asking import ask, events_of, started
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.messages.commands import Submit
from tokenmux.messages.reports import Broken, Finished, Tokens
from tokenmux.server.front.generation import FinishInfo, StreamEvent
from tokenmux.testing.scripted_node import ScriptedNodes


def drawn(request: RequestId, index: int, n_cached: int) -> Tokens:
    return Tokens(request, index, (ord("x"),), 100.0, n_cached=n_cached)


def n_cached_of(events: list[StreamEvent]) -> list[int]:
    return [event.n_cached for event in events if isinstance(event, FinishInfo)]


async def test_each_choice_tells_its_own() -> None:
    hub = ScriptedNodes(auto=True)
    hub.n_cached = 2
    async with started(hub) as front:
        assert n_cached_of(await events_of(front, ask(n=2))) == [2, 2]


async def test_what_is_recovered_after_the_first_token_does_not_count() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask(max_tokens=2)) as stream:
        request = (await hub.next(Submit)).request.id
        hub.post(drawn(request, 0, n_cached=2))
        hub.post(Broken("killed"))
        assert (await hub.next(Submit)).delivered
        hub.post(drawn(request, 1, n_cached=3))
        hub.post(Finished(request, FinishReason.LENGTH, 100.0))
        assert n_cached_of([event async for event in stream]) == [2]


async def test_a_node_that_broke_before_the_first_token_has_given_nothing() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front, front.open(ask(max_tokens=1, cache_salt="pepper")) as stream:
        await hub.next(Submit)
        hub.post(Broken("killed"))
        again = await hub.next(Submit)
        assert (again.cache_salt, again.prefix_cache) == ("pepper", True)
        hub.post(drawn(again.request.id, 0, n_cached=3))
        hub.post(Finished(again.request.id, FinishReason.LENGTH, 100.0))
        assert n_cached_of([event async for event in stream]) == [3]
