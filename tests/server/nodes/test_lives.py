"""What breaks, hangs or kills nodes, against a scripted node and on virtual time: who pays, and how it
goes on."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest

from tests.server.front.asking import ask, events_of, text_of, tokens, until
from tests.server.harness import PATIENCE_S, make_front
from tests.server.scripted_models import FakeEntry, facts
from tests.server.virtual_time import VirtualTime, turns
from tokenmux.core.errors import NotServable, ProcessFailed, Unavailable
from tokenmux.core.facts import ModelId
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.messages.commands import Command, Order, Pin, Register, Submit
from tokenmux.messages.reports import Alive, Broken, Reports
from tokenmux.messages.setups import PresentDevices
from tokenmux.processes.restarts import RestartLimits
from tokenmux.server.front.call import Call
from tokenmux.server.front.front import Front
from tokenmux.server.front.limits import Limits
from tokenmux.server.nodes.supervisor import Patience
from tokenmux.testing.scripted_node import (
    ScriptedNode,
    ScriptedNodes,
    make_reports,
)

MANY = RestartLimits(n=99)
"""For tests of other things than waiting."""


class DeadlyNode(ScriptedNode):
    """Breaks at what the hub says is deadly; serves everything else after a few turns of the loop."""

    def send(self, order: Order) -> None:
        if self.script.is_deadly(order.command):  # type: ignore[attr-defined]
            self.post(Broken("it was deadly"))
            self.dead = True
        if self.dead:
            self.script.sent.put_nowait(order.command)
            return
        super().send(order)
        if isinstance(order.command, Submit):
            asyncio.get_running_loop().create_task(self._serve(order.command))

    async def _serve(self, submit: Submit) -> None:
        await turns(5)
        if not self.dead and not self.closed:
            self.run(submit)


class DeadlyHub(ScriptedNodes):
    def __init__(self, is_deadly: Callable[[Command], bool]) -> None:
        super().__init__()
        self.is_deadly = is_deadly

    def factory(self, post: Callable[[Reports], None], *, devices: PresentDevices) -> ScriptedNode:
        node = DeadlyNode(self, post, devices)
        self.nodes.append(node)
        post(make_reports(Alive()))
        return node


@asynccontextmanager
async def started(hub: ScriptedNodes, time: VirtualTime, *names: str, **options: Any) -> AsyncIterator[Front]:
    entries = [FakeEntry(facts(name)) for name in names or ("letters",)]
    front, _ = make_front(hub, *entries, clock=time.clock, sleep=time.sleep, **options)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await front.start()
            yield front
    finally:
        await front.close()


def is_poison(message: Command) -> bool:
    return isinstance(message, Submit) and message.prompt[:1] == (ord("!"),)


async def outcome(stream: Call) -> str:
    try:
        return text_of([event async for event in stream])
    except NotServable as error:
        return str(error)


@pytest.mark.parametrize("place", [0, 3, 7])
async def test_a_request_that_kills_its_node_before_it_runs_is_given_up_alone(place: int) -> None:
    hub, time = DeadlyHub(is_poison), VirtualTime()
    async with started(hub, time, limits=Limits(restarts=MANY)) as front, AsyncExitStack() as stack:
        texts = ["!bc" if i == place else "abc" for i in range(8)]
        streams = [await stack.enter_async_context(front.open(ask(text))) for text in texts]
        ends = await asyncio.gather(*map(outcome, streams))
        assert "nodes broke over it, the last one while it was tried alone" in ends.pop(place)
        assert ends == ["defghijk"] * 7
        assert len(hub.nodes) <= 7, "two suspicions, then halving"
        assert text_of(await events_of(front, ask())) == "defghijk"


async def test_two_deadly_requests_among_many_are_both_found() -> None:
    hub, time = DeadlyHub(is_poison), VirtualTime()
    async with started(hub, time, limits=Limits(restarts=MANY)) as front, AsyncExitStack() as stack:
        texts = ["!bc" if i in (2, 11) else "abc" for i in range(16)]
        streams = [await stack.enter_async_context(front.open(ask(text))) for text in texts]
        ends = await asyncio.gather(*map(outcome, streams))
        assert [i for i, end in enumerate(ends) if end != "defghijk"] == [2, 11]


async def test_a_deadly_request_whose_client_leaves_makes_nobody_else_guilty() -> None:
    """The client of the deadly one gives up when its node breaks, and comes back, again and again."""
    hub, time = DeadlyHub(is_poison), VirtualTime()
    hub.answer_cancels = False
    async with started(hub, time, limits=Limits(restarts=MANY)) as front:
        for _ in range(4):
            n = len(hub.nodes)
            async with front.open(ask()) as good:
                with suppress(NotServable):
                    async with front.open(ask("!bc")):
                        pass
                await until(lambda n=n: len(hub.nodes) > n and front.node.running)
                assert await outcome(good) == "defghijk"


async def test_arrivals_during_trials_are_served() -> None:
    hub, time = DeadlyHub(is_poison), VirtualTime()
    async with started(hub, time, limits=Limits(restarts=MANY)) as front, front.open(ask("!bc")) as bad:
        while not bad.closed:
            assert text_of(await events_of(front, ask())) == "defghijk"
        assert "given up" in await outcome(bad)


async def test_a_model_whose_loading_kills_nodes_is_refused_and_the_others_are_served() -> None:
    deadly = ModelId("deadly")
    hub = DeadlyHub(lambda message: isinstance(message, Pin) and message.model == deadly)
    time = VirtualTime()
    names = ("a", "deadly", "c")
    async with started(hub, time, *names, limits=Limits(restarts=MANY), pinned=["deadly"]) as front:
        await until(lambda: front.models.find(deadly).refusal is not None)
        assert "nodes broke again and again when it was loaded" in str(front.models.find(deadly).refusal)
        for name in ("a", "c"):
            assert text_of(await events_of(front, ask(model=name))) == "defghijk"
        with pytest.raises(NotServable, match="unregister it"):
            await events_of(front, ask(model="deadly"))
        assert len(hub.nodes) == 4


async def test_a_model_whose_registration_kills_nodes_is_refused_and_the_others_are_served() -> None:
    deadly = ModelId("deadly")
    hub = DeadlyHub(lambda message: isinstance(message, Register) and message.facts.id == deadly)
    async with started(hub, VirtualTime(), "a", "deadly", "c", limits=Limits(restarts=MANY)) as front:
        with pytest.raises(NotServable, match="a node broke each time when it was told of this model"):
            await events_of(front, ask(model="deadly"))
        for name in ("a", "c"):
            assert text_of(await events_of(front, ask(model=name))) == "defghijk"
        assert len(hub.nodes) == 4


async def test_a_model_all_of_whose_requests_kill_nodes_is_refused() -> None:
    hub = DeadlyHub(
        lambda message: isinstance(message, Submit) and message.request.model == ModelId("deadly")
    )
    async with started(hub, VirtualTime(), "deadly", "good", limits=Limits(restarts=MANY)) as front:
        for _ in range(2):
            async with front.open(ask(model="deadly")) as bad, front.open(ask(model="good")) as good:
                assert "given up" in await outcome(bad)
                assert await outcome(good) == "defghijk"
        assert len(hub.nodes) <= 6, "three deaths for the first; the second is tried at once, and then alone"
        with pytest.raises(NotServable, match="2 of its requests broke nodes"):
            await events_of(front, ask(model="deadly"))
        assert text_of(await events_of(front, ask(model="good"))) == "defghijk"


async def test_a_deadly_request_does_not_cost_a_good_model_its_name() -> None:
    hub = DeadlyHub(is_poison)
    async with started(hub, VirtualTime(), limits=Limits(restarts=MANY)) as front:
        for _ in range(3):
            async with front.open(ask("!bc")) as bad:
                assert "given up" in await outcome(bad)
            assert text_of(await events_of(front, ask())) == "defghijk"


async def test_a_node_that_dies_at_its_birth_is_nobodys_fault() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    async with started(hub, time, limits=Limits(restarts=MANY)) as front, front.open(ask()) as stream:
        await hub.next(Submit)
        make, n_stillborn = hub.factory, 5

        def stillborn(post: Callable[[Reports], None], *, devices: PresentDevices) -> ScriptedNode:
            nonlocal n_stillborn
            node = make(post, devices=devices)
            if n_stillborn:
                n_stillborn -= 1
                node.send = lambda message: None  # type: ignore[method-assign]
                post(make_reports(Broken("the device is gone")))
            return node

        hub.factory = stillborn  # type: ignore[method-assign]
        hub.post(Broken("killed"))
        submit = await hub.next(Submit)
        hub.node.run(submit)
        assert await outcome(stream) == "defghijk"
        assert len(hub.nodes) == 7


# Waiting for the next node


async def test_nodes_that_keep_breaking_are_replaced_after_growing_waits_for_ever() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    limits = Limits(restarts=RestartLimits(n=2, window_s=60.0))
    async with started(hub, time, limits=limits) as front:
        for n in (1, 2):
            hub.post(Broken("killed"))
            await until(lambda n=n: front.node.running and front.node.n_restarts == n)
        assert front.ready
        for n, wait_s in enumerate((1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0), start=3):
            hub.post(Broken("killed"))
            await until(lambda w=wait_s: not front.node.running and time.has_sleeper(w))
            assert not front.ready
            await time.pass_s(wait_s - 0.001)
            assert front.node.n_restarts == n - 1
            await time.pass_s(0.001)
            await until(lambda n=n: front.node.running and front.node.n_restarts == n)
            await turns()
        await time.pass_s(2.0)
        assert front.ready, "a node that lives is enough"
        hub.auto = True
        assert text_of(await events_of(front, ask())) == "defghijk"
        await time.pass_s(60.0)
        hub.post(Broken("killed"))
        await until(lambda: front.node.running and front.node.n_restarts == 11)
        assert front.ready, "it is forgiven: the last one lived long"


async def test_requests_wait_for_a_node_but_not_for_ever() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    limits = Limits(restarts=RestartLimits(n=0, first_wait_s=100.0), outage_s=30.0)
    async with started(hub, time, limits=limits) as front, front.open(ask()) as before:
        await hub.next(Submit)
        hub.post(Broken("killed"))
        await until(lambda: not front.node.running and time.has_sleeper(60.0))
        await time.pass_s(29.0)
        async with front.open(ask()) as during:
            assert (before.closed, during.closed) == (False, False)
            await time.pass_s(2.0)
            for stream in (before, during):
                with pytest.raises(Unavailable, match=r"the next one starts in 60 s; the last time: killed"):
                    await anext(e async for e in stream if not isinstance(e, PhaseChanged) and False)
        with pytest.raises(Unavailable, match="starts in 60 s"):
            await events_of(front, ask())
        assert front.n_live == 0
        await time.pass_s(60.0)
        await until(lambda: front.node.running)
        await turns()
        await time.pass_s(2.0)
        hub.auto = True
        assert text_of(await events_of(front, ask())) == "defghijk"
        assert front.ready


async def test_a_server_that_cannot_start_a_process_says_where_to_look() -> None:
    hub = ScriptedNodes()
    hub.fails_to_start = 1
    front, _ = make_front(hub)
    with pytest.raises(ProcessFailed, match=r"no node can be started: no more processes; .*`ulimit -a`"):
        await front.start()
    await front.close()


async def test_a_server_whose_first_node_cannot_be_had_says_so_and_ends() -> None:
    hub = ScriptedNodes()
    hub.factory = lambda post, **_: (
        post(make_reports(Broken("no such device")))
        or ScriptedNode(hub, lambda _: None, PresentDevices({}, 0))
    )  # type: ignore[assignment, method-assign]
    front, _ = make_front(hub)
    with pytest.raises(Unavailable, match=r"cannot start: 4 nodes in a row.*no such device"):
        await front.start()
    await front.close()


async def test_closing_does_not_wait_for_the_next_node() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    async with started(hub, time, limits=Limits(restarts=RestartLimits(n=0))) as front:
        hub.post(Broken("killed"))
        await until(lambda: not front.node.running and time.has_sleeper(1.0))
    assert len(hub.nodes) == 1


async def test_threads_that_hang_elsewhere_do_not_keep_a_node_from_being_replaced() -> None:
    """As reads of a dead disk do in the threads of the loop, all of them."""
    hub, time, never = ScriptedNodes(auto=True), VirtualTime(), threading.Event()
    async with started(hub, time) as front:
        loop = asyncio.get_running_loop()
        few = ThreadPoolExecutor(1)
        loop.set_default_executor(few)
        hanging = loop.run_in_executor(None, never.wait)
        hub.post(Broken("killed"))
        await until(lambda: front.node.n_restarts == 1 and front.node.running)
        never.set()
        await hanging


# Silence


async def test_a_node_that_falls_silent_is_killed_and_replaced() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    async with started(hub, time) as front, front.open(ask(max_tokens=6)) as stream:
        hub.post(Alive())
        hub.post(tokens(stream.id, 0, "def"))
        await turns()
        for _ in range(30):
            await time.pass_s(1.0)
            hub.post(Alive())
            await turns()
        assert not hub.node.killed
        await time.pass_s(9.0)
        assert not hub.node.killed
        await time.pass_s(2.0)
        assert hub.nodes[0].killed
        assert not front.ready, "health says so until the next one serves"
        await until(lambda: front.node.running)
        submits = [await hub.next(Submit), await hub.next(Submit)]
        hub.node.run(submits[-1])
        assert await outcome(stream) == "defghi"
        assert front.ready


async def test_a_node_that_announces_a_long_silence_is_left_alone() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    async with started(hub, time):
        hub.post(Alive(silent_s=300.0))
        await turns()
        await time.pass_s(299.0)
        assert not hub.node.killed
        hub.post(Alive())
        await turns()
        await time.pass_s(12.0)
        assert hub.nodes[0].killed


async def test_a_node_that_has_not_begun_to_serve_has_more_time() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    async with started(hub, time, limits=Limits(patience=Patience(silent_s=1.0, starting_s=300.0))):
        await time.pass_s(299.0)
        assert not hub.node.killed
        await time.pass_s(3.0)
        assert hub.nodes[0].killed


async def test_a_front_that_stood_still_itself_does_not_blame_the_node() -> None:
    hub, time = ScriptedNodes(), VirtualTime()
    async with started(hub, time):
        hub.post(Alive())
        await turns()
        await time.pass_s(1.0)
        time.now_s += 3600.0  # stopped, or the machine slept
        await time.pass_s(1.0)
        assert not hub.nodes[0].killed


async def test_a_stopping_server_says_how_far_each_stream_came() -> None:
    hub = ScriptedNodes()
    async with started(hub, VirtualTime()) as front, front.open(ask()) as stream:
        hub.post(tokens(stream.id, 0, "def"))
        hub.post(PhaseChanged(stream.id, RequestPhase.RUNNING))
        await until(lambda: stream.choices[0].n_delivered == 3)
        front.end_streams()
        with pytest.raises(Unavailable, match="the server stopped after 3 tokens of request"):
            async for _ in stream:
                pass
