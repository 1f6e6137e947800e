"""The front as a whole: draining, closing, and telling those who watch."""

import asyncio

import pytest

from tests.server.front.asking import ask, events_of, started, text_of, until
from tests.server.harness import make_front
from tests.server.sample_reports import node_status
from tokenmux.core.errors import (
    Unavailable,
)
from tokenmux.messages.commands import Submit
from tokenmux.testing.scripted_node import (
    ScriptedNodes,
)


async def test_draining_refuses_new_requests_and_waits_for_the_others() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front:
        async with front.open(ask()) as stream:
            drained = asyncio.create_task(front.drain())
            await until(lambda: not front.ready)
            with pytest.raises(Unavailable, match="shutting down"):
                await events_of(front, ask())
            hub.node.run(await hub.next(Submit))
            assert text_of([event async for event in stream]) == "defghijk"
            assert not drained.done()
        await drained


async def test_closing_ends_what_is_live_and_closes_the_node() -> None:
    hub = ScriptedNodes()
    front, _ = make_front(hub)
    await front.start()
    async with front.open(ask()) as stream:
        await front.close()
        with pytest.raises(Unavailable, match="stopped"):
            async for _ in stream:
                pass
    assert hub.node.closed


async def test_the_latest_status_is_kept_and_watchers_are_woken() -> None:
    hub = ScriptedNodes()
    async with started(hub) as front:
        version = front.changes.version
        hub.post(node_status("letters"))
        assert await front.changes.after(version) > version
        assert front.node.status == node_status("letters")
