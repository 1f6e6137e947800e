"""Keeps one worker alive: starts it, carries its messages onto the event loop, starts another when it breaks.

A worker answers from a thread of its own. Its messages are collected and handled on the loop in batches, so that a thousand
tokens cost one wake-up. What a dead worker still had to say is dropped: its successor is told everything that matters anew,
by `on_started`. How often this may happen is bounded; after that the pool stays down, and says so, instead of spinning.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tokenmux.engine.core.errors import TokenmuxError, Unavailable, WorkerFailed
from tokenmux.engine.core.message import Broken, FromWorker, ToWorker
from tokenmux.engine.server.seams import Worker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """At most `n` restarts within `window_s` seconds."""

    n: int = 3
    window_s: float = 60.0


class _Inbox:
    """Takes messages from any thread, hands them over on the loop, in order, several at a time, once released."""

    def __init__(self, handle: Callable[[FromWorker], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._handle = handle
        self._lock = threading.Lock()
        self._messages: list[FromWorker] = []
        self._scheduled = True  # by `release`
        self._open = True

    def post(self, message: FromWorker) -> None:
        with self._lock:
            if not self._open:
                return
            self._messages.append(message)
            if self._scheduled:
                return
            self._scheduled = True
            # Under the lock, so that `shut` on the loop's thread cannot come in between and let the loop close.
            self._loop.call_soon_threadsafe(self._drain)

    def release(self) -> None:
        """The worker is installed: what it said meanwhile can be handled."""
        self._loop.call_soon(self._drain)

    def shut(self) -> None:
        """Nothing is handled any more."""
        with self._lock:
            self._open = False
            self._messages.clear()

    def _drain(self) -> None:
        with self._lock:
            messages, self._messages = self._messages, []
            self._scheduled = False
        for message in messages:
            if not self._open:  # handling one of them may have shut it
                return
            self._handle(message)


class Supervisor:
    """See the module. Everything but `WorkerFactory` and `Worker.close` runs on the event loop."""

    def __init__(
        self,
        factory: Callable[[Callable[[FromWorker], None]], Worker],
        *,
        on_message: Callable[[FromWorker], None],
        on_broken: Callable[[], None],
        on_started: Callable[[], None],
        on_given_up: Callable[[TokenmuxError], None],
        limits: RestartLimits,
        clock: Callable[[], float],
    ) -> None:
        """`on_broken` is called when a worker died, `on_started` when one can be sent to (the first one, too),
        `on_given_up` when there will be no other."""
        self._factory = factory
        self._on_message = on_message
        self._on_broken = on_broken
        self._on_started = on_started
        self._on_given_up = on_given_up
        self._limits = limits
        self._clock = clock
        self._worker: Worker | None = None
        self._inbox: _Inbox | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._restarts_s: deque[float] = deque()
        self._closed = False
        self.n_restarts = 0

    @property
    def running(self) -> bool:
        """Whether there is a worker to send to."""
        return self._worker is not None

    async def start(self) -> None:
        """Start the first worker. Raises what the factory raises."""
        self._install(*await self._spawn())

    def send(self, message: ToWorker) -> None:
        """Hand a message to the worker. While there is none it is dropped: `on_started` is the time to repeat it."""
        if self._worker is None:
            return
        try:
            self._worker.send(message)
        except WorkerFailed as error:
            self._break(str(error))

    async def close(self) -> None:
        """Stop for good: no restart, no message after this."""
        self._closed = True
        if self._restarting is not None:
            await self._restarting
        worker, self._worker = self._worker, None
        if self._inbox is not None:
            self._inbox.shut()
        if worker is not None:
            await asyncio.to_thread(worker.close)

    async def _spawn(self) -> tuple[Worker, _Inbox]:
        inbox = _Inbox(self._receive)
        return await asyncio.to_thread(self._factory, inbox.post), inbox

    def _install(self, worker: Worker, inbox: _Inbox) -> None:
        self._worker, self._inbox = worker, inbox
        self._on_started()
        inbox.release()

    def _receive(self, message: FromWorker) -> None:
        if isinstance(message, Broken):
            self._break(message.detail)
        else:
            self._on_message(message)

    def _break(self, detail: str) -> None:
        if self._closed or self._restarting is not None:
            return
        logger.error("worker broke: %s", detail)
        if self._inbox is not None:
            self._inbox.shut()
        self._restarting = asyncio.create_task(self._restart(detail), name="restart worker")

    async def _restart(self, detail: str) -> None:
        broken, self._worker = self._worker, None
        self._on_broken()
        if broken is not None:
            await asyncio.to_thread(broken.close)
        while self._may_restart():
            self.n_restarts += 1
            try:
                worker, inbox = await self._spawn()
            except Exception as error:  # noqa: BLE001 - whatever stops a process from starting
                detail = f"{type(error).__name__}: {error}"
                logger.error("worker did not start: %s", detail)
                continue
            logger.warning("worker restarted (%d times so far)", self.n_restarts)
            self._restarting = None  # first, so that this one may break while it is being told what to do
            self._install(worker, inbox)
            return
        if not self._closed:
            self._on_given_up(
                Unavailable(
                    f"the worker broke more than {self._limits.n} times within {self._limits.window_s:g} s "
                    f"and stays down until the server is restarted; the last time: {detail}"
                )
            )

    def _may_restart(self) -> bool:
        if self._closed:
            return False
        now_s = self._clock()
        while self._restarts_s and now_s - self._restarts_s[0] > self._limits.window_s:
            self._restarts_s.popleft()
        if len(self._restarts_s) >= self._limits.n:
            return False
        self._restarts_s.append(now_s)
        return True
