"""An event loop on virtual time: nothing waits, and threads' work is done at once.

With the same calls in the same order everything happens in the same order, so that a run is a function of its
seed.
"""

import asyncio
from asyncio import base_events
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from random import Random
from typing import Any, TypeVar

Result = TypeVar("Result")


THREAD_S = 0.02
"""Longest time that a thread's work takes."""


class NothingLeft(AssertionError):
    """Everybody waits, and nothing will happen any more."""


class _Passing:
    """The selector of a loop without sockets: instead of sleeping it lets time pass."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None:
            raise NothingLeft("everybody waits, and nothing will happen any more")
        self.now_s += max(0.0, timeout)
        return []

    def close(self) -> None:
        """There is nothing to close."""


class VirtualLoop(base_events.BaseEventLoop):
    """See the module. The first error in a callback is kept as `fault`."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self._rng = rng
        self._selector = _Passing()
        self._clock_resolution = 1e-9
        self.fault: BaseException | None = None
        self.set_exception_handler(self._note)

    def time(self) -> float:
        return self._selector.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., Result], *args: Any) -> Any:
        """Call it on the loop, after a moment drawn by lot: a thread would run in an order of its own."""
        done: asyncio.Future[Result] = self.create_future()

        def call() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - raised where it is awaited
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(result)

        self.call_later(1e-4 + THREAD_S * self._rng.random() ** 4, call)
        return done

    def _process_events(self, event_list: object) -> None:
        """There are no sockets."""

    def _write_to_self(self) -> None:
        """There are no other threads."""

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception") or AssertionError(context["message"])
        self.fault = self.fault or error


def run(main: Coroutine[Any, Any, Result], rng: Random) -> Result:
    """Run it to its end on a loop of its own. Raises the first error of any callback."""
    loop = VirtualLoop(rng)
    asyncio.set_event_loop(loop)
    try:
        result = loop.run_until_complete(_beside(loop, main))
        left = [task for task in asyncio.all_tasks(loop) if not task.done()]
        assert not left, f"tasks are left: {[task.get_name() for task in left]}"
        return result
    finally:
        _cancel_all(loop)
        asyncio.set_event_loop(None)
        loop.close()


def _cancel_all(loop: VirtualLoop) -> None:
    """After a fault: have everything end that still waits, whatever it says."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        with suppress(NothingLeft):
            loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()


async def _beside(loop: VirtualLoop, main: Awaitable[Result]) -> Result:
    """Await it, and stop at the first error of a callback."""
    task = asyncio.ensure_future(main)
    while not task.done():
        await asyncio.wait([task], timeout=1.0)
        if loop.fault is not None:
            task.cancel()
            raise loop.fault
    return task.result()
