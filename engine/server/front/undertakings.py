"""What operators ask for and is completed even if they leave: registrations, changes of devices. When the
server stops, those who still wait are told to try again."""

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from tokenmux.core.errors import TokenmuxError

logger = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")


class Undertakings:
    """Work under way, each with a caller who may wait for it."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Task[Any], asyncio.Future[Any]] = {}

    async def complete(self, work: Coroutine[Any, Any, _Answer], name: str) -> _Answer:
        """Carry work out, and return its result. It goes on if the caller leaves."""
        caller: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(work, name=name)
        self._waiting[task] = caller
        task.add_done_callback(partial(self._done, caller))
        return await caller

    def stop(self, error: TokenmuxError) -> None:
        """All who wait get this error."""
        for caller in self._waiting.values():
            if not caller.done():
                caller.set_exception(error)

    def _done(self, caller: "asyncio.Future[Any]", task: asyncio.Task[Any]) -> None:
        del self._waiting[task]
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if isinstance(error, TokenmuxError):
            logger.warning("%s: refused: %s", task.get_name(), error)
        if caller.done():
            return
        if error is None:
            caller.set_result(task.result())
        elif isinstance(error, asyncio.CancelledError):
            caller.cancel()
        else:
            caller.set_exception(error)
