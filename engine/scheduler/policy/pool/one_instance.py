"""The pool policy of a single instance."""

from collections.abc import Sequence

from tokenmux.core.event import Event
from tokenmux.core.request import Request
from tokenmux.scheduler.policy.pool.pool_policy import Move, Place, PoolView


class OneInstance:
    """Place every request on the first instance."""

    name = "one"

    def place(self, request: Request, pool: PoolView) -> Place:
        return Place(0)

    def on_event(self, index: int, event: Event, pool: PoolView) -> Sequence[Move]:
        return ()

    def on_left(self, index: int, request: Request) -> None:
        """Do nothing."""
