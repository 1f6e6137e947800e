"""Work for a client lasts as long as the client stays.

ASGI says that a client has left through `receive` alone, so a task waits there meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

Awaited = TypeVar("Awaited")


class ClientLeft(Exception):
    """The client closed its connection."""


async def while_connected(
    work: Coroutine[Any, Any, Awaited],
    receive: Receive,
    meanwhile: Callable[[], Awaitable[object]] | None = None,
) -> Awaited:
    """The result of `work`, which is cancelled at once if the client leaves; ClientLeft is raised then.

    `receive` must have given the whole body. `meanwhile` runs beside the work, and must not end.
    """
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(work), asyncio.ensure_future(_leaves(receive))]
    if meanwhile is not None:
        tasks.append(asyncio.ensure_future(meanwhile()))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if tasks[0].cancelled():
        raise ClientLeft
    result: Awaited = tasks[0].result()
    return result


async def _leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
