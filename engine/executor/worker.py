"""A worker: one engine with its device, in a process of its own, behind the messages of `tokenmux.messages`.

The front keeps the interpreter lock of its process to itself, and a crash here costs time, not the server.
Messages travel over a socket pair between parent and child; when either end dies, the other notices at once.
Signals to the process group are the front's to handle: a worker ends by message, by the end of its socket,
with its parent (`orphans`), or by SIGKILL.

This is the parent's side; `worker_main` is the child's.
"""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from queue import Empty, Full, Queue
from threading import Thread

from tokenmux.core.errors import NotServable, WorkerFailed
from tokenmux.executor import worker_main
from tokenmux.executor.assemble import WorkerSetup
from tokenmux.messages.codec import ORDERS, REPORTS, MalformedMessage
from tokenmux.messages.commands import Order, Shutdown, Ticket
from tokenmux.messages.frame_socket import MAX_FRAME_BYTES, FrameSocket
from tokenmux.messages.reports import Broken, Reports
from tokenmux.processes import orphans

_log = logging.getLogger(__name__)

PROCESS_CLOSE_S = 5.0
"""A worker that has not ended by then, most likely inside a step, is killed."""

REAP_TIMEOUT_S = 2.0
"""A killed process that has not ended by then waits inside the kernel (a dead disk, a dead driver); it is
left to it."""

MAX_UNSENT = 100_000
"""Commands that may wait for the socket. A worker that reads nothing is found by its silence long before this
many, unless it is flooded."""


class ProcessWorker:
    """A worker process. `on_reports` is called from a thread of this object, in order."""

    def __init__(self, setup: WorkerSetup, on_reports: Callable[[Reports], None]) -> None:
        self._unsent: Queue[bytes | None] = Queue(MAX_UNSENT)
        self._gone = False
        self._origin = setup.instance
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
        self._sender = Thread(target=self._send, args=(setup,), name="tokenmux-worker-sender", daemon=True)
        self._reader = Thread(target=self._read, name="tokenmux-worker-reader", daemon=True)
        self._sender.start()
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, order: Order) -> None:
        """Queue a command; never blocks. Raises WorkerFailed if the process is gone or no longer reads,
        and NotServable for a command that cannot be sent to any worker."""
        if self._gone:
            raise WorkerFailed("the worker process is gone; it is being restarted")
        try:
            self._unsent.put_nowait(_encoded(order))
        except Full:
            raise WorkerFailed(f"the worker has left {MAX_UNSENT} messages unread") from None

    def kill(self) -> None:
        """End the process now, stopped and hung ones too. `close` it afterwards."""
        self._closing = True
        self._process.kill()

    def close(self) -> None:
        """Stop the process, gently at first. Nothing is delivered afterwards. Takes seconds at most."""
        self._closing = True
        try:
            self.send(Order(Ticket(0), Shutdown()))
        except WorkerFailed:
            pass
        if not self._ended_within(PROCESS_CLOSE_S):
            self._process.kill()
            if not self._ended_within(REAP_TIMEOUT_S):
                _log.error("worker process %d does not end though it was killed; it is left behind", self.pid)
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

    def _send(self, setup: WorkerSetup) -> None:
        try:
            self._frames.send(worker_main.SETUP.encode(setup))
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
            detail = f"worker process {self.pid} sent {error}"
        self._gone = True
        if not self._closing:
            ended = f"the worker process ended with status {self._process.returncode}"
            self._on_reports(Reports(self._origin, [Broken(detail or ended)]))


def _encoded(order: Order) -> bytes:
    """Encode a command. Raises NotServable for what no frame can hold: strange checkpoints have numbers of
    hundreds of digits."""
    try:
        frame = ORDERS.encode(order)
    except OverflowError as error:
        raise NotServable(f"{type(order.command).__name__} cannot be sent to a worker: {error}") from None
    if len(frame) > MAX_FRAME_BYTES:
        raise NotServable(
            f"{type(order.command).__name__} of {len(frame)} bytes is too long to be sent to a worker"
        )
    return frame


def _start(socket_end: socket.socket) -> "subprocess.Popen[bytes]":
    """Start a worker process that inherits this end of a socket pair. Raises OSError if no more processes
    can be started."""
    descriptor = socket_end.fileno()
    command = [sys.executable, "-P", "-m", worker_main.__name__, str(descriptor), str(os.getpid())]
    return orphans.started(
        lambda: subprocess.Popen(
            command, pass_fds=(descriptor,), stdin=subprocess.DEVNULL, env=worker_environment(os.environ)
        )
    ).result()


def worker_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker process, given `ours`: it leaves one core to others, and its OpenMP threads
    sleep while they wait, unless the operator decided otherwise.

    A server has more to do than steps: copies, messages, the front, its clients. Beside one busy process on
    two cores, a step of SmolLM2 took 18 ms with one thread, 22 to 35 with two that sleep while they wait for
    each other, and 32 to 52 with two that spin.
    """
    n_threads = threads_beside_others(len(os.sched_getaffinity(0)))
    defaults = {"OMP_NUM_THREADS": str(n_threads), "OMP_WAIT_POLICY": "passive"}
    return {**defaults, **ours, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def threads_beside_others(n_cores: int) -> int:
    """Number of threads for a step on a machine of `n_cores` cores: all but one, or fewer, so that it is a
    power of two or three times one.

    Layers divide evenly among that many. With 5, 7, 11, 13 or 15 threads products are exact by row for fewer
    rows at a time, if at all.
    """
    fitting = {1 << i for i in range(12)} | {3 << i for i in range(12)}
    return max(n for n in fitting if n <= max(1, n_cores - 1))
