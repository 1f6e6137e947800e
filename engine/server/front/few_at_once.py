"""Requests of one call, a few of which run at once: a call with many inputs cannot fill the queue."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import TypeVar

MAX_AT_ONCE = 16

Each = TypeVar("Each")


async def each(n: int, work: Callable[[int], Awaitable[Each]]) -> list[Each]:
    """The results of `work` for 0 to n - 1, `MAX_AT_ONCE` of them at once. The first failure ends all."""
    results: dict[int, Each] = {}
    places = count()

    async def some() -> None:
        while (place := next(places)) < n:
            results[place] = await work(place)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(n, MAX_AT_ONCE)):
                group.create_task(some())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [results[place] for place in range(n)]
