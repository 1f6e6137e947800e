"""Asking a front of scripted parts, and reading what comes back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.server.harness import PATIENCE_S, make_front
from tests.server.scripted_models import FakeEntry
from tokenmux.core.request import RequestId
from tokenmux.messages.reports import Tokens
from tokenmux.server.front.front import Front
from tokenmux.server.front.generation import (
    Ask,
    StreamEvent,
    Text,
    TokenDelta,
)
from tokenmux.server.front.limits import Limits
from tokenmux.server.front.tenants import Weights
from tokenmux.testing.scripted_node import (
    ScriptedNodes,
)


@asynccontextmanager
async def started(
    hub: ScriptedNodes,
    *entries: FakeEntry,
    limits: Limits | None = None,
    weights: Weights | None = None,
    clock: Callable[[], float] = lambda: 100.0,
) -> AsyncIterator[Front]:
    front, _ = make_front(hub, *entries, limits=limits, weights=weights, clock=clock)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await front.start()
            yield front
    finally:
        await front.close()


def ask(text: str = "abc", **changes: object) -> Ask:
    return Ask(**{"model": "letters", "prompt": Text(text), **changes})  # type: ignore[arg-type]


async def registered(front: Front, name: str, source: str = "") -> None:
    """Register a model, and wait until it is served. Raises the operation's error."""
    views = [view async for view in front.watch_operation(front.register(name, source).name)]
    error = views[-1].error
    if error is not None:
        raise error


async def events_of(front: Front, question: Ask) -> list[StreamEvent]:
    async with front.open(question) as stream:
        return [event async for event in stream]


def text_of(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenDelta))


def tokens_of(events: list[StreamEvent]) -> list[int]:
    return [i for event in events if isinstance(event, TokenDelta) for i in event.token_ids]


def tokens(request: RequestId, index: int, text: str, at_s: float = 100.0) -> Tokens:
    return Tokens(request, index, tuple(map(ord, text)), at_s)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until what was posted has had its effect."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - a turn of the loop, no time; the conditions have no event
            await asyncio.sleep(0)
