"""The one thread of a node: it sleeps until the front or an executor says something, an executor ends, or
there is something to report.

Nothing here blocks: what others do not read yet waits in their sockets' queues. Executors are served before
the front, and launches go out before reports, so that no device waits for words.
"""

import logging
import selectors
from collections.abc import Callable

from tokenmux.core.clock import Clock
from tokenmux.core.facts import FIRST_NODE
from tokenmux.messages.codec import COMPLETIONS, ORDERS, REPORTS, MalformedMessage
from tokenmux.messages.completions import Completions
from tokenmux.messages.frame_socket import PatientSocket
from tokenmux.messages.reports import Report, Reports
from tokenmux.node.executor_process import ExecutorProcess
from tokenmux.node.executor_processes import ExecutorProcesses
from tokenmux.node.node import Node

_log = logging.getLogger(__name__)

BEAT_S = 1.0
"""Seconds between reports that the loop is alive, busy or idle."""

MAX_UNSENT_BYTES = 256 << 20
"""Reports that may wait for the front. One that leaves more unread hangs."""


class NodeLoop:
    """Joins a node to its front and its executors. Give `emit` to the node, and `watch` every executor."""

    def __init__(self, front: PatientSocket) -> None:
        self._front = front
        self._selector = selectors.DefaultSelector()
        self._selector.register(front, selectors.EVENT_READ, self._read_front)
        self._gone = False
        self._executors: list[ExecutorProcess] = []
        self._node: Node | None = None
        self._processes: ExecutorProcesses | None = None

    def emit(self, reports: list[Report]) -> None:
        """Send reports to the front."""
        try:
            self._front.send(REPORTS.encode(Reports(FIRST_NODE, reports)))
        except OSError:
            self._gone = True

    def watch(self, executor: ExecutorProcess) -> None:
        """Hear what an executor says from now on, until it has ended."""
        self._executors.append(executor)
        self._selector.register(executor.frames, selectors.EVENT_READ, lambda: self._read_executor(executor))
        self._selector.register(executor.ended, selectors.EVENT_READ, lambda: self._executor_ended(executor))

    def run(self, node: Node, clock: Clock, executors: ExecutorProcesses) -> None:
        """Serve until the node stops. An error in the node itself is reported as `Broken`, then raised."""
        self._node, self._processes = node, executors
        beat_s = clock.now_s()
        try:
            node.beat()
            node.start()
            while not node.stopped and not self._gone:
                self._turn(max(0.0, self._due_s(node, beat_s + BEAT_S) - clock.now_s()))
                node.pump()
                if clock.now_s() >= beat_s + BEAT_S:
                    beat_s = clock.now_s()
                    node.beat()
                self._send_the_rest()
        except Exception as error:
            node.broken(f"the node failed: {error!r}")
            node.pump()
            raise
        finally:
            self._say_the_rest()

    def _turn(self, timeout_s: float) -> None:
        ready = self._selector.select(timeout_s)
        calls: list[Callable[[], None]] = [key.data for key, _ in ready]
        calls.sort(key=lambda call: call == self._read_front)
        for call in calls:
            call()

    def _send_the_rest(self) -> None:
        """Send what waits in queues, and wake up when others read again, if they have left anything."""
        for executor in self._executors:
            executor.flush()
            self._watch_unsent(executor.frames)
        try:
            self._front.flush()
        except OSError:
            self._gone = True
        if self._front.n_unsent_bytes > MAX_UNSENT_BYTES:
            raise BufferError(f"the front has left {MAX_UNSENT_BYTES} bytes unread")
        self._watch_unsent(self._front)

    def _watch_unsent(self, frames: PatientSocket) -> None:
        key = self._selector.get_map().get(frames)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if frames.n_unsent_bytes else 0)
        if key is not None and key.events != events:
            self._selector.modify(frames, events, key.data)

    def _due_s(self, node: Node, beat_s: float) -> float:
        return beat_s if node.next_due_s is None else min(beat_s, node.next_due_s)

    def _read_front(self) -> None:
        assert self._node is not None
        try:
            frames = self._front.receive()
            orders = [ORDERS.decode(frame) for frame in frames]
        except (EOFError, OSError):
            self._gone = True
        except MalformedMessage as error:
            self._node.broken(f"the front sent {error}")
        else:
            for order in orders:
                self._node.receive(order)

    def _read_executor(self, executor: ExecutorProcess) -> None:
        assert self._node is not None
        if executor not in self._executors:  # its end was handled in this turn
            return
        said: list[Completions] = []
        try:
            said += map(COMPLETIONS.decode, executor.frames.receive())
        except (EOFError, OSError):
            self._forget(executor.frames)
            executor.kill()
        except MalformedMessage as error:
            executor.fault = f"it sent {error}"
            self._forget(executor.frames)
            executor.kill()
        if executor.index is not None:
            for completions in said:
                self._node.heard(executor.index, completions)

    def _executor_ended(self, executor: ExecutorProcess) -> None:
        """The process is gone: take what it still said, then tell the node."""
        assert self._node is not None
        self._read_executor(executor)
        self._forget(executor.frames)
        self._forget(executor.ended)
        self._executors.remove(executor)
        detail = executor.close()
        if executor.index is not None:
            self._node.ended(executor.index, detail)
        elif self._processes is not None:
            self._processes.ended(executor)

    def _forget(self, watched: PatientSocket | int) -> None:
        if watched in self._selector.get_map():
            self._selector.unregister(watched)

    def _say_the_rest(self) -> None:
        """Let the front have the last words, unless it reads nothing."""
        for _ in range(10):
            if self._gone or not self._front.n_unsent_bytes:
                return
            self._selector.select(0.1)
            try:
                self._front.flush()
            except OSError:
                return
