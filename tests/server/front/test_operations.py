"""Work that goes on without its caller: it is watched, cancelled with nothing left, bounded and forgotten."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from tests.server.harness import PATIENCE_S, Served, serving
from tokenmux.client import AsyncClient, CallFailed
from tokenmux.client import OperationState as Told
from tokenmux.core.errors import BadCheckpoint, NotFound, Overloaded, WorkCancelled
from tokenmux.core.progress import Progress
from tokenmux.server.front.cancellation import Cancellation
from tokenmux.server.front.long_operations import MAX_ENDED, MAX_RUNNING, LongOperations, OperationState


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def operations() -> LongOperations:
    return LongOperations(Clock())


async def last(operations: LongOperations, name: str) -> OperationState:
    async with asyncio.timeout(PATIENCE_S):
        async for view in operations.watch(name):
            state = view.state
    return state


async def test_a_watcher_sees_progress_and_the_end() -> None:
    clock, go_on = Clock(), asyncio.Event()
    operations = LongOperations(clock)

    async def work(progress: Progress, cancellation: Cancellation) -> None:
        await asyncio.to_thread(progress, "converting " + "x" * 500, 3, 10**30)
        await go_on.wait()

    name = operations.start("m", work).name
    views = operations.watch(name)
    first = await anext(views)
    assert (first.state, first.model, first.doing) == (OperationState.RUNNING, "m", "")
    clock.now_s = 5.0
    second = await anext(views)
    assert (len(second.doing), second.done, second.total, second.elapsed_s) == (200, 3, 2**63, 5.0)
    go_on.set()
    third = await anext(views)
    assert (third.state, third.error) == (OperationState.DONE, None)
    with pytest.raises(StopAsyncIteration):
        await anext(views)
    clock.now_s = 9.0
    assert operations.get(name) == third


async def test_an_end_has_its_reason(operations: LongOperations) -> None:
    async def broken(progress: Progress, cancellation: Cancellation) -> None:
        raise BadCheckpoint("cut off")

    async def faulty(progress: Progress, cancellation: Cancellation) -> None:
        raise ZeroDivisionError("/secret/path")

    async def endless(progress: Progress, cancellation: Cancellation) -> None:
        heard = asyncio.Event()
        with cancellation.tells(heard.set):
            await heard.wait()
        cancellation.check()

    names = [operations.start("m", work).name for work in (broken, faulty, endless)]
    operations.cancel(names[2])
    states = [await last(operations, name) for name in names]
    assert states == [OperationState.FAILED, OperationState.FAILED, OperationState.CANCELLED]
    errors = [operations.get(name).error for name in names]
    assert str(errors[0]) == "cut off"
    assert "secret" not in str(errors[1])
    assert isinstance(errors[2], WorkCancelled)
    operations.cancel(names[0])  # it has ended: nothing happens
    assert operations.get(names[0]).state is OperationState.FAILED


async def test_so_many_run_and_so_many_are_kept(operations: LongOperations) -> None:
    go_on = asyncio.Event()

    async def wait(progress: Progress, cancellation: Cancellation) -> None:
        await go_on.wait()

    async def nothing(progress: Progress, cancellation: Cancellation) -> None:
        pass

    running = [operations.start("m", wait).name for _ in range(MAX_RUNNING)]
    with pytest.raises(Overloaded, match="16 operations are under way"):
        operations.start("m", wait)
    go_on.set()
    for name in running:
        await last(operations, name)
    ended = [operations.start("m", nothing).name for _ in range(MAX_RUNNING)]
    for _ in range(MAX_ENDED // MAX_RUNNING):
        for name in ended:
            await last(operations, name)
        ended = [operations.start("m", nothing).name for _ in range(MAX_RUNNING)]
    for name in ended:
        await last(operations, name)
    assert len(operations.all()) == MAX_ENDED
    assert operations.all()[0].name == ended[-1]
    with pytest.raises(NotFound, match="forgotten"):
        operations.get(running[0])


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as running:
        yield running


async def test_a_registration_is_watched_and_cancelled_and_leaves_nothing(served: Served) -> None:
    def convert(progress: Progress, cancellation: Cancellation) -> None:
        ended = threading.Event()
        with cancellation.tells(ended.set):
            progress("converting", 1, 4)
            assert ended.wait(PATIENCE_S)
        cancellation.check()

    served.catalogue.while_registering = convert
    async with asyncio.timeout(PATIENCE_S), AsyncClient(served.target) as client:
        operation = await client.models.start_registration("more", "/")
        with pytest.raises(CallFailed, match="being registered at this moment"):
            await client.models.start_registration("more", "/")
        states = []
        views = client.operations.watch(operation.name)
        while not (states and states[-1].doing):
            states.append(await anext(views))
        assert (states[-1].doing, states[-1].done, states[-1].total) == ("converting", 1, 4)
        await client.operations.cancel(operation.name)
        states.append(await anext(views))
        with pytest.raises(CallFailed) as caught:
            await anext(views)
        assert caught.value.details.reason == "CANCELLED"
        assert states[-1].state is Told.CANCELLED
        assert [*served.catalogue.kept] == ["letters"]
        assert [known.name for known in await client.operations.list()] == [operation.name]
        served.catalogue.while_registering = lambda *_: None
        assert (await client.models.register("more", "/")).name == "more"
        with pytest.raises(CallFailed, match="no operation 'x'"):
            await client.operations.get("x")


async def test_what_is_cancelled_when_it_was_converted_is_removed_again(served: Served) -> None:
    served.catalogue.while_registering = lambda progress, cancellation: cancellation.ask()
    ended = await served.register("more", "/")
    assert (ended.error.reason, [*served.catalogue.kept]) == ("CANCELLED", ["letters"])


async def test_what_waits_for_its_turn_is_cancelled_at_once(served: Served) -> None:
    release, n_begun = threading.Event(), 0

    def convert(progress: Progress, cancellation: Cancellation) -> None:
        nonlocal n_begun
        n_begun += 1
        assert release.wait(PATIENCE_S)

    served.catalogue.while_registering = convert
    async with asyncio.timeout(PATIENCE_S), AsyncClient(served.target) as client:
        begun = [await client.models.start_registration(f"m{i}", "/") for i in range(3)]
        await client.operations.cancel(begun[2].name)
        with pytest.raises(CallFailed, match="cancelled"):
            async for _ in client.operations.watch(begun[2].name):
                pass
        release.set()
        for operation in begun[:2]:
            async for _ in client.operations.watch(operation.name):
                pass
        assert (n_begun, served.catalogue.names()) == (2, ["letters", "m0", "m1"])
