"""What the supervisor needs of a node, so that tests can use a scripted one.

`tokenmux.node.node_process.NodeProcess` is the real one.
"""

from collections.abc import Callable
from typing import Protocol

from tokenmux.messages.commands import Order
from tokenmux.messages.reports import Reports
from tokenmux.messages.setups import PresentDevices


class RunningNode(Protocol):
    """A running node. It answers from its own thread through the callback that its factory was given."""

    def send(self, order: Order) -> None:
        """Send a message without waiting. Raises ProcessFailed if the node is gone."""
        ...

    def kill(self) -> None:
        """End it now, whatever it is doing. `close` it afterwards."""
        ...

    def close(self) -> None:
        """Stop it and free what it holds; may block. Nothing is delivered afterwards. No effect if it is
        gone already."""
        ...


class NodeFactory(Protocol):
    """Starts nodes."""

    def __call__(self, on_reports: Callable[[Reports], None], *, devices: PresentDevices) -> RunningNode:
        """Start a node with these devices. May block. It answers through `on_reports`."""
        ...
