"""A worker: one engine with its device, in a process of its own, behind the messages of `engine.core.message`.

The front keeps the interpreter lock of its process to itself, and a crash here costs time, not the server. Messages travel over a
private pipe between parent and child; when either end dies, the other notices at once.
"""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from threading import Lock, Thread

from tokenmux.engine.core.errors import WorkerFailed
from tokenmux.engine.core.message import Broken, FromWorker, Shutdown, ToWorker
from tokenmux.engine.runtime.assemble import WorkerConfig, assemble
from tokenmux.engine.runtime.loop import EngineLoop

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
"""A worker that has not ended by then, most likely inside a step, is killed."""


class ProcessWorker:
    """A worker process. `on_message` is called from a thread of this object, for every message in order."""

    def __init__(self, config: WorkerConfig, on_message: Callable[[FromWorker], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._sending = Lock()
        self._on_message = on_message
        self._closing = False
        self._process = context.Process(
            target=_run_child, args=(config, theirs), name="tokenmux-worker", daemon=True
        )
        with _modest_threads():
            self._process.start()
        theirs.close()
        self._reader = Thread(target=self._read, name="tokenmux-worker-reader", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def send(self, message: ToWorker) -> None:
        """Hand over a message. Raises WorkerFailed when the process is gone."""
        try:
            with self._sending:
                self._pipe.send(message)
        except (OSError, ValueError) as error:
            raise WorkerFailed("the worker process is gone; it is being restarted") from error

    def close(self) -> None:
        """Stop the process, gently at first. Nothing is delivered afterwards."""
        self._closing = True
        try:
            self.send(Shutdown())
        except WorkerFailed:
            pass
        self._process.join(CLOSE_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._reader.join()
        self._pipe.close()

    def _read(self) -> None:
        try:
            while True:
                for message in self._pipe.recv():
                    if not self._closing:
                        self._on_message(message)
        except (EOFError, OSError):
            self._process.join()
            if not self._closing:
                self._on_message(Broken(f"the worker process ended with status {self._process.exitcode}"))


@contextmanager
def _modest_threads() -> Iterator[None]:
    """A process started here leaves one core to others, and its OpenMP threads sleep while they wait, unless the operator chose.

    A server has more to do than steps: copies, messages, the front, its clients. Beside one busy process on two cores, a step of
    SmolLM2 took 18 ms with one thread, 22 to 35 with two that sleep while they wait for each other, and 32 to 52 with two that spin.
    """
    cores = len(os.sched_getaffinity(0))
    defaults = {"OMP_NUM_THREADS": str(max(1, cores - 1)), "OMP_WAIT_POLICY": "passive"}
    ours = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _run_child(config: WorkerConfig, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
