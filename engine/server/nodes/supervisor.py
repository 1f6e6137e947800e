"""Keeps one node alive: starts it, carries its messages onto the event loop, replaces it if it breaks or
falls silent.

A node answers from its own thread. Its messages are collected and handled on the loop in batches, so that a
thousand tokens cost one wake-up. Unhandled messages of a dead node are dropped: `on_started` tells its
successor everything that matters.

A node that sends nothing for `Patience.silent_s` is killed: it beats once a second, whatever it computes.
Time during which this process itself stood still does not count. Replacing begins at once; if nodes keep
breaking soon after they begin, after a growing wait, without limit. Only a server whose first node cannot
start gives up, so that its operator notices.
"""

import asyncio
import itertools
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from tokenmux.core.errors import ProcessFailed, TokenmuxError, Unavailable
from tokenmux.core.facts import NodeId
from tokenmux.messages.commands import Command, Order, Ticket
from tokenmux.messages.reports import Alive, Broken, Report, Reports
from tokenmux.processes.restarts import RestartLimits
from tokenmux.server.nodes.node_protocol import RunningNode

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

TICK_S = 1.0
"""Seconds between checks whether the node has sent anything."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a node may be silent, in seconds."""

    silent_s: float = 10.0
    """Once it serves. It announces what takes longer (a resize)."""
    starting_s: float = 300.0
    """Until it serves: it loads libraries and allocates memory."""


class _Inbox:
    """Takes messages from any thread and, once released, handles them on the loop, in order, in batches."""

    def __init__(self, handle: Callable[[NodeId, Report], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._handle = handle
        self._lock = threading.Lock()
        self._messages: list[Reports] = []
        self.n_posted = 0
        """Number of messages so far."""
        self._scheduled = True  # by `release`
        self._open = True

    def post(self, message: Reports) -> None:
        with self._lock:
            if not self._open:
                return
            self.n_posted += 1
            self._messages.append(message)
            if self._scheduled:
                return
            self._scheduled = True
            # Under the lock, so that `shut` on the loop's thread cannot intervene and let the loop close.
            self._loop.call_soon_threadsafe(self._drain)

    def release(self) -> None:
        """The node is installed: messages received so far can be handled."""
        self._loop.call_soon(self._drain)

    def shut(self) -> None:
        """Handle nothing any longer."""
        with self._lock:
            self._open = False
            self._messages.clear()

    def _drain(self) -> None:
        with self._lock:
            messages, self._messages = self._messages, []
            self._scheduled = False
        for message in messages:
            for report in message.reports:
                if not self._open:  # handling one of them may have shut it
                    return
                self._handle(message.origin, report)


class Supervisor:
    """Keeps a node alive; see the module. Everything except `NodeFactory` and the ends of nodes runs
    on the event loop."""

    def __init__(
        self,
        factory: Callable[[Callable[[Reports], None]], RunningNode],
        *,
        on_report: Callable[[Report], None],
        on_broken: Callable[[], None],
        on_started: Callable[[], None],
        on_down: Callable[[TokenmuxError], None],
        on_given_up: Callable[[TokenmuxError], None],
        limits: RestartLimits,
        patience: Patience,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """`on_broken` is called when a node died, `on_started` when one can receive messages (including
        the first), `on_down` with the reason when there will be none for some time, and `on_given_up` when
        `served` was never called and there will be no other."""
        self._factory = factory
        self._on_report = on_report
        self._on_broken = on_broken
        self._on_started = on_started
        self._on_down = on_down
        self._on_given_up = on_given_up
        # A separate pool: what hangs in the loop's threads (a disk) must not keep a node from being
        # replaced.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="tokenmux-supervisor")
        self._limits = limits
        self._patience = patience
        self._clock = clock
        self._sleep = sleep
        self._node: RunningNode | None = None
        self._tickets = itertools.count(1)
        self._inbox: _Inbox | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._waiting: asyncio.Future[object] | None = None
        self._patience_s = 0.0
        self._began_s = 0.0
        self._n_short_lives = 0
        self._has_served = False
        self.has_spoken = False
        """True if the present node, or the last one, has sent anything; before that it has read nothing
        either."""
        self._closed = False
        self.n_restarts = 0

    @property
    def running(self) -> bool:
        """True if there is a node to send to."""
        return self._node is not None

    async def start(self) -> None:
        """Start the first node. Raises ProcessFailed if the system cannot start a process, and whatever else
        the factory raises."""
        try:
            self._install(*await self._spawn())
        except OSError as error:
            raise ProcessFailed(
                f"no node can be started: {error}; look at the limits of processes, open files and memory "
                "(`ulimit -a`)"
            ) from error

    def served(self) -> None:
        """A node has taken what it was told: from now on the supervisor never gives up."""
        self._has_served = True

    def send(self, command: Command) -> Ticket:
        """Send a command to the node; returns its ticket. Without a node it is dropped: repeat it at
        `on_started`."""
        ticket = Ticket(next(self._tickets))
        if self._node is not None:
            try:
                self._node.send(Order(ticket, command))
            except ProcessFailed as error:
                self._break(str(error))
        return ticket

    async def close(self) -> None:
        """Stop permanently: no restart, no message after this."""
        self._closed = True
        if self._waiting is not None:
            self._waiting.cancel()
        if self._restarting is not None:
            await self._restarting
        node, self._node = self._node, None
        self._stop_watching()
        if self._inbox is not None:
            self._inbox.shut()
        if node is not None:
            await self._in_thread(node.close)
        self._threads.shutdown(wait=False)

    async def _spawn(self) -> tuple[RunningNode, _Inbox]:
        inbox = _Inbox(self._receive)
        self._began_s = self._clock()
        return await self._in_thread(lambda: self._factory(inbox.post)), inbox

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _install(self, node: RunningNode, inbox: _Inbox) -> None:
        self._node, self._inbox = node, inbox
        self.has_spoken = False
        self._patience_s = self._patience.starting_s
        self._watching = asyncio.create_task(self._watch(node, inbox), name="watch node")
        self._on_started()
        inbox.release()

    async def _watch(self, node: RunningNode, inbox: _Inbox) -> None:
        """Kill a node that is silent for longer than it may be."""
        silent_s, n_heard, looked_s = 0.0, inbox.n_posted, self._clock()
        while silent_s < self._patience_s:
            await self._sleep(TICK_S)
            now_s = self._clock()
            # If this process was stopped or starved itself, the node's messages may only be waiting to be
            # read.
            passed_s = min(now_s - looked_s, 2 * TICK_S)
            silent_s = 0.0 if inbox.n_posted != n_heard else silent_s + passed_s
            n_heard, looked_s = inbox.n_posted, now_s
        detail = f"it has sent nothing for {silent_s:.0f} s"
        logger.error("the node is killed: %s", detail)
        node.kill()
        self._break(detail, hung=True)

    def _stop_watching(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None and watching is not asyncio.current_task():
            watching.cancel()

    def _receive(self, origin: NodeId, report: Report) -> None:
        self.has_spoken = self.has_spoken or not isinstance(report, Broken)
        match report:
            case Broken(detail):
                logger.error("node %d reports that it is broken", origin)
                self._break(detail)
            case Alive(silent_s):
                self._patience_s = max(self._patience.silent_s, silent_s)
            case _:
                self._on_report(report)

    def _break(self, detail: str, *, hung: bool = False) -> None:
        if self._closed or self._restarting is not None:
            return
        logger.error("node broke: %s", detail)
        self._stop_watching()
        if self._inbox is not None:
            self._inbox.shut()
        self._restarting = asyncio.create_task(self._restart(detail, hung), name="restart node")

    async def _restart(self, detail: str, hung: bool) -> None:
        broken, self._node = self._node, None
        self._on_broken()
        if hung:
            self._on_down(
                Unavailable(f"the node hung and is being replaced ({detail}): try again in a moment")
            )
        if broken is not None:
            await self._in_thread(broken.close)
        while not self._closed:
            lived_s = self._clock() - self._began_s
            self._n_short_lives = self._n_short_lives + 1 if lived_s < self._limits.window_s else 1
            if not await self._may_go_on(detail):
                return
            self.n_restarts += 1
            try:
                node, inbox = await self._spawn()
            except Exception as error:  # noqa: BLE001 - whatever stops a process from starting
                detail = f"{type(error).__name__}: {error}"
                logger.error("node did not start: %s", detail)
                continue
            logger.warning("node restarted (%d times so far)", self.n_restarts)
            self._restarting = None  # first, so that this one may break while it is being told what to do
            self._install(node, inbox)
            return

    async def _may_go_on(self, detail: str) -> bool:
        """Wait as long as necessary before the next start. False if there will be none."""
        wait_s = self._limits.wait_s(self._n_short_lives)
        if wait_s == 0.0:
            return True
        n = f"{self._n_short_lives} nodes in a row broke within {self._limits.window_s:g} s of their start"
        if not self._has_served:
            self._on_given_up(Unavailable(f"the server cannot start: {n}; the last one: {detail}"))
            return False
        logger.error("%s; the next one starts in %g s", n, wait_s)
        self._on_down(Unavailable(f"{n}; the next one starts in {wait_s:g} s; the last time: {detail}"))
        self._waiting = asyncio.ensure_future(self._sleep(wait_s))
        await asyncio.wait([self._waiting])
        self._waiting = None
        return not self._closed
