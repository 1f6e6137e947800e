"""Wakes those who watch something change, without ever queueing anything for them.

A watcher looks at the thing itself each time it is woken; what changed twice before it looked, it sees once.
"""

import asyncio


class Changes:
    """A version number that one can wait on. On one event loop."""

    def __init__(self) -> None:
        self.version = 0
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Something changed."""
        self.version += 1
        event, self._next = self._next, asyncio.Event()
        event.set()

    async def after(self, version: int) -> int:
        """Wait until the version is another than `version`, and return it."""
        while self.version == version:
            await self._next.wait()
        return self.version
