"""A node in a process of its own, as its front sees it.

The front keeps the interpreter lock of its process to itself, and a crash of the node costs time, not the
server. Messages travel over a socket pair between parent and child; when either end dies, the other notices
at once. Signals to the process group are the front's to handle: a node ends by message, by the end of its
socket, with its parent (`orphans`), or by SIGKILL, and its executors end with it.

This is the parent's side; `node_main` is the child's.
"""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from queue import Empty, Full, Queue
from threading import Thread

from tokenmux.core.errors import NotServable, ProcessFailed
from tokenmux.core.facts import FIRST_NODE
from tokenmux.messages.codec import NODE_SETUP, ORDERS, REPORTS, MalformedMessage
from tokenmux.messages.commands import Order, Shutdown, Ticket
from tokenmux.messages.frame_socket import MAX_FRAME_BYTES, FrameSocket
from tokenmux.messages.reports import Broken, Reports
from tokenmux.messages.setups import NodeSetup
from tokenmux.processes import orphans

_log = logging.getLogger(__name__)

NODE_MODULE = "tokenmux.node.node_main"

PROCESS_CLOSE_S = 5.0
"""A node that has not ended by then is killed."""

REAP_TIMEOUT_S = 2.0
"""A killed process that has not ended by then waits inside the kernel (a dead disk, a dead driver); it is
left to it."""

MAX_UNSENT = 100_000
"""Commands that may wait for the socket. A node that reads nothing is found by its silence long before this
many, unless it is flooded."""


class NodeProcess:
    """A node process. `on_reports` is called from a thread of this object, in order."""

    def __init__(self, setup: NodeSetup, on_reports: Callable[[Reports], None]) -> None:
        self._unsent: Queue[bytes | None] = Queue(MAX_UNSENT)
        self._gone = False
        self._on_reports = on_reports
        self._closing = False
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = _start(theirs)
        except BaseException:
            ours.close()
            raise
        self._frames = FrameSocket(ours)
        self._sender = Thread(target=self._send, args=(setup,), name="tokenmux-node-sender", daemon=True)
        self._reader = Thread(target=self._read, name="tokenmux-node-reader", daemon=True)
        self._sender.start()
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, order: Order) -> None:
        """Queue a command; never blocks. Raises ProcessFailed if the process is gone or no longer reads,
        and NotServable for a command that cannot be sent to any node."""
        if self._gone:
            raise ProcessFailed("the node is gone; it is being restarted")
        try:
            self._unsent.put_nowait(_encoded(order))
        except Full:
            raise ProcessFailed(f"the node has left {MAX_UNSENT} messages unread") from None

    def kill(self) -> None:
        """End the process now, stopped and hung ones too. `close` it afterwards."""
        self._closing = True
        self._process.kill()

    def close(self) -> None:
        """Stop the process, gently at first. Nothing is delivered afterwards. Takes seconds at most."""
        self._closing = True
        try:
            self.send(Order(Ticket(0), Shutdown()))
        except ProcessFailed:
            pass
        if not self._ended_within(PROCESS_CLOSE_S):
            self._process.kill()
            if not self._ended_within(REAP_TIMEOUT_S):
                _log.error("node %d does not end though it was killed; it is left behind", self.pid)
                return
        self._end_sender()
        self._sender.join(REAP_TIMEOUT_S)
        self._reader.join(REAP_TIMEOUT_S)
        self._frames.close()

    def _ended_within(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _end_sender(self) -> None:
        """Have the sender end without sending what is left."""
        self._gone = True
        while True:
            try:
                self._unsent.put_nowait(None)
                return
            except Full:
                try:
                    self._unsent.get_nowait()
                except Empty:
                    pass

    def _send(self, setup: NodeSetup) -> None:
        try:
            self._frames.send(NODE_SETUP.encode(setup))
            while (frame := self._unsent.get()) is not None:
                self._frames.send(frame)
        except OSError:  # the reader reports the end of the process
            pass
        self._gone = True

    def _read(self) -> None:
        detail = ""
        try:
            while True:
                reports = REPORTS.decode(self._frames.receive())
                if not self._closing:
                    self._on_reports(reports)
        except (EOFError, OSError):
            self._ended_within(REAP_TIMEOUT_S)
        except MalformedMessage as error:
            detail = f"node {self.pid} sent {error}"
        self._gone = True
        if not self._closing:
            ended = f"the node ended with status {self._process.returncode}"
            self._on_reports(Reports(FIRST_NODE, [Broken(detail or ended)]))


def _encoded(order: Order) -> bytes:
    """Encode a command. Raises NotServable for what no frame can hold: strange checkpoints have numbers of
    hundreds of digits."""
    try:
        frame = ORDERS.encode(order)
    except OverflowError as error:
        raise NotServable(f"{type(order.command).__name__} cannot be sent to a node: {error}") from None
    if len(frame) > MAX_FRAME_BYTES:
        raise NotServable(
            f"{type(order.command).__name__} of {len(frame)} bytes is too long to be sent to a node"
        )
    return frame


def _start(socket_end: socket.socket) -> "subprocess.Popen[bytes]":
    """Start a node process that inherits this end of a socket pair. Raises OSError if no more processes
    can be started."""
    descriptor = socket_end.fileno()
    command = [sys.executable, "-P", "-m", NODE_MODULE, str(descriptor), str(os.getpid())]
    return orphans.started(
        lambda: subprocess.Popen(
            command, pass_fds=(descriptor,), stdin=subprocess.DEVNULL, env=_environment()
        )
    ).result()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
