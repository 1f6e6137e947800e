"""Who finds a place in a full queue, and what weights the operator gave."""

from contextlib import AsyncExitStack

import pytest

from tests.server.front.asking import ask, events_of, started, text_of, until
from tokenmux.core.errors import (
    Overloaded,
)
from tokenmux.messages.commands import Submit
from tokenmux.server.front.limits import Limits
from tokenmux.server.front.tenants import Weights
from tokenmux.testing.scripted_node import (
    ScriptedNodes,
)


async def test_a_full_queue_refuses_and_recovers() -> None:
    hub = ScriptedNodes()
    async with started(hub, limits=Limits(max_requests=2)) as front:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(front.open(ask()))
            with pytest.raises(Overloaded, match=r"queue is full \(2 requests\)"):
                await events_of(front, ask())
        await until(lambda: front.n_live == 0)
        hub.auto = True
        assert text_of(await events_of(front, ask())) == "defghijk"


async def test_a_tenant_that_fills_the_queue_does_not_shut_out_another() -> None:
    hub = ScriptedNodes()
    async with started(hub, limits=Limits(max_requests=16)) as front, AsyncExitStack() as stack:
        for _ in range(16):
            await stack.enter_async_context(front.open(ask(tenant="large")))
        with pytest.raises(Overloaded):
            await events_of(front, ask(tenant="large"))
        for _ in range(2):
            await stack.enter_async_context(front.open(ask(tenant="small")))
        with pytest.raises(Overloaded):
            await events_of(front, ask(tenant="small"))


async def test_the_operators_weights_reach_the_scheduler() -> None:
    hub = ScriptedNodes(auto=True)
    weights = Weights({"team": 3.0}, {"letters": 4.0})
    async with started(hub, weights=weights) as front:
        await events_of(front, ask(tenant="team", weight=2.0))
        await events_of(front, ask())
        first, second = [(await hub.next(Submit)).request for _ in range(2)]
    assert (first.weight, first.tenant_weight) == (8.0, 3.0)
    assert (second.weight, second.tenant_weight) == (4.0, 1.0)
