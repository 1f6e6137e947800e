"""Wakes those who watch something change, without ever queueing anything for them.

A watcher looks at the thing itself each time it is woken; several changes before it looks count as one.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from tokenmux.core.errors import Overloaded


class Changes:
    """A version number that one can wait on. On one event loop."""

    def __init__(self) -> None:
        self.version = 0
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Record a change."""
        self.version += 1
        event, self._next = self._next, asyncio.Event()
        event.set()

    async def after(self, version: int) -> int:
        """Wait until the version differs from `version`, and return it."""
        while self.version == version:
            await self._next.wait()
        return self.version


class Watchers:
    """Limits how many clients watch something, since each costs memory and time while it stays."""

    def __init__(self, what: str, limit: int, instead: str) -> None:
        """At most `limit` clients watch `what` at once. Errors tell the others what to do `instead`."""
        self._what = what
        self._limit = limit
        self._instead = instead
        self._n = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place. Raises Overloaded."""
        if self._n >= self._limit:
            raise Overloaded(f"{self._limit} clients watch {self._what} already: {self._instead}")
        self._n += 1
        try:
            yield
        finally:
            self._n -= 1
