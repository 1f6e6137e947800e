"""What the supervisor needs of a worker, so that tests can use a scripted one.

`tokenmux.node.node_process.NodeProcess` is the real one.
"""

from collections.abc import Callable
from typing import Protocol

from tokenmux.messages.commands import Order
from tokenmux.messages.reports import Reports
from tokenmux.messages.setups import PresentDevices


class Worker(Protocol):
    """A running worker. It answers from its own thread through the callback that its factory was given."""

    def send(self, order: Order) -> None:
        """Send a message without waiting. Raises WorkerFailed if the worker is gone."""
        ...

    def kill(self) -> None:
        """End it now, whatever it is doing. `close` it afterwards."""
        ...

    def close(self) -> None:
        """Stop it and free what it holds; may block. Nothing is delivered afterwards. No effect if it is
        gone already."""
        ...


class WorkerFactory(Protocol):
    """Starts workers."""

    def __call__(self, on_reports: Callable[[Reports], None], *, devices: PresentDevices) -> Worker:
        """Start a worker with these devices. May block. It answers through `on_reports`."""
        ...
