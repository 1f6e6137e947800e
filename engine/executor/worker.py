"""A worker: one engine with its device, in a separate process, behind the messages of `tokenmux.messages`.

The front keeps the interpreter lock of its process to itself, and a crash here costs time, not the server.
Messages travel over a private pipe between parent and child; when either end dies, the other notices at once.
Signals to the process group are the front's to handle: a worker ends by message, by the end of its pipe, with
its parent (`orphans`), or by SIGKILL.
"""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from queue import Empty, Full, Queue
from threading import Thread

from tokenmux.core.errors import WorkerFailed
from tokenmux.executor import orphans
from tokenmux.executor.assemble import WorkerSetup, assemble
from tokenmux.executor.loop import EngineLoop
from tokenmux.messages.commands import Shutdown, ToWorker
from tokenmux.messages.reports import Broken, FromWorker

_log = logging.getLogger(__name__)

PROCESS_CLOSE_S = 5.0
"""A worker that has not ended by then, most likely inside a step, is killed."""

REAP_TIMEOUT_S = 2.0
"""A killed process that has not ended by then waits inside the kernel (a dead disk, a dead driver) and is
left alone."""

MAX_UNSENT = 100_000
"""Most messages that may wait for the pipe. A worker that reads nothing is noticed by its silence long
before, unless it is flooded."""


class ProcessWorker:
    """A worker process. `on_message` is called from a thread of this object, for every message in order."""

    def __init__(self, config: WorkerSetup, on_message: Callable[[FromWorker], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._unsent: Queue[ToWorker | None] = Queue(MAX_UNSENT)
        self._gone = False
        self._on_message = on_message
        self._closing = False
        self._process = context.Process(
            target=_run_child, args=(config, theirs, os.getpid()), name="tokenmux-worker", daemon=True
        )
        with _modest_threads():
            orphans.start(self._process)
        theirs.close()
        self._sender = Thread(target=self._send, name="tokenmux-worker-sender", daemon=True)
        self._reader = Thread(target=self._read, name="tokenmux-worker-reader", daemon=True)
        self._sender.start()
        self._reader.start()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def send(self, message: ToWorker) -> None:
        """Send a message; never blocks. Raises WorkerFailed if the process is gone, or no longer reads."""
        if self._gone:
            raise WorkerFailed("the worker process is gone; it is being restarted")
        try:
            self._unsent.put_nowait(message)
        except Full:
            raise WorkerFailed(f"the worker has left {MAX_UNSENT} messages unread") from None

    def kill(self) -> None:
        """End the process now, even if it is stopped or hung. `close` it afterwards."""
        self._closing = True
        self._process.kill()

    def close(self) -> None:
        """Stop the process, gently at first. Nothing is delivered afterwards. Takes at most a few seconds."""
        self._closing = True
        try:
            self.send(Shutdown())
        except WorkerFailed:
            pass
        self._process.join(PROCESS_CLOSE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(REAP_TIMEOUT_S)
        if self._process.is_alive():
            _log.error("worker process %d does not end though it was killed; it is left behind", self.pid)
            return
        self._end_sender()
        self._sender.join(REAP_TIMEOUT_S)
        self._reader.join(REAP_TIMEOUT_S)
        self._pipe.close()

    def _end_sender(self) -> None:
        """End the sender without sending what is left."""
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

    def _send(self) -> None:
        try:
            while (message := self._unsent.get()) is not None:
                self._pipe.send(message)
        except Exception as error:  # noqa: BLE001 - the reader says what became of the process
            if not isinstance(error, OSError):
                _log.exception("a message could not be sent to the worker")
                self._process.kill()
        self._gone = True

    def _read(self) -> None:
        detail = ""
        try:
            while True:
                for message in self._pipe.recv():
                    if not self._closing:
                        self._on_message(message)
        except (EOFError, OSError):
            self._process.join(REAP_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - pickles can raise anything
            _log.exception("what the worker sent cannot be read")
            detail = f"the worker sent what cannot be read: {error!r}"
        self._gone = True
        if not self._closing:
            ended = f"the worker process ended with status {self._process.exitcode}"
            self._on_message(Broken(detail or ended))


@contextmanager
def _modest_threads() -> Iterator[None]:
    """A process started in this block leaves one core to others, and its OpenMP threads sleep while they
    wait, unless the operator decided otherwise.

    A server has more to do than steps: copies, messages, the front, its clients. Beside one busy process on
    two cores, a step of SmolLM2 took 18 ms with one thread, 22 to 35 with two that sleep while they wait for
    each other, and 32 to 52 with two that spin.
    """
    n_threads = threads_beside_others(len(os.sched_getaffinity(0)))
    defaults = {"OMP_NUM_THREADS": str(n_threads), "OMP_WAIT_POLICY": "passive"}
    ours = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def threads_beside_others(n_cores: int) -> int:
    """Number of threads for a step on a machine of `n_cores` cores: all but one, or fewer, so that it is a
    power of two or three times one.

    Layers divide evenly among that many. With 5, 7, 11, 13 or 15 threads products are exact by row for fewer
    rows at a time, if at all.
    """
    fitting = {1 << i for i in range(12)} | {3 << i for i in range(12)}
    return max(n for n in fitting if n <= max(1, n_cores - 1))


def _run_child(config: WorkerSetup, pipe: Connection, parent: int) -> None:
    orphans.die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    loop = EngineLoop()

    def read() -> None:
        try:
            while True:
                loop.send(pipe.recv())
        except (EOFError, OSError):
            loop.send(Shutdown())

    def emit(messages: list[FromWorker]) -> None:
        try:
            pipe.send(messages)
        except OSError:
            loop.send(Shutdown())

    Thread(target=read, name="tokenmux-pipe-reader", daemon=True).start()
    with ExitStack() as stack:
        try:
            parts = stack.enter_context(assemble(config, loop, emit))
        except Exception as error:
            emit([Broken(f"the device cannot be used: {error}")])
            raise
        loop.run(parts.engine, parts.clock)
