"""What the supervisor needs of a worker, so that tests can put a scripted one in its place.

`tokenmux.executor.worker.ProcessWorker` is the real one.
"""

from collections.abc import Callable
from typing import Protocol

from tokenmux.messages.commands import ToWorker
from tokenmux.messages.reports import FromWorker


class Worker(Protocol):
    """A running worker. It answers through the callback that its factory was given, from a thread of its
    own."""

    def send(self, message: ToWorker) -> None:
        """Hand over a message without waiting. Raises WorkerFailed when the worker is gone."""
        ...

    def kill(self) -> None:
        """End it now, whatever it does. `close` it afterwards."""
        ...

    def close(self) -> None:
        """Stop it and free what it holds; may block. Nothing is delivered afterwards. Harmless when it is
        gone already."""
        ...


class WorkerFactory(Protocol):
    """Starts workers."""

    def __call__(self, on_message: Callable[[FromWorker], None], *, arena_bytes: int) -> Worker:
        """Start a worker whose device manages so much memory; may block. It answers through `on_message`."""
        ...
