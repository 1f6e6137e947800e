"""Where the live requests of a pool are: on an instance, or between two."""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenmux.core.errors import InternalError
from tokenmux.core.event import Arrived
from tokenmux.core.request import RequestId
from tokenmux.scheduler.instance.instance import Instance


@dataclass(frozen=True, slots=True)
class Transit:
    """A request that has left an instance and not arrived yet."""

    source: int
    instance: Instance
    """The one that it left. It may have been lost since then."""
    target: int | None
    """Where the pool policy moves it; None: it will be placed when it arrives."""
    arrived: Arrived


class Whereabouts:
    """Every live request is in exactly one of `on` and `between`."""

    def __init__(self) -> None:
        self.on: dict[RequestId, int] = {}
        """The instance of every request that is on one."""
        self.asked: dict[RequestId, int | None] = {}
        """Those of them that have been asked to leave, with the target if the policy named one."""
        self.between: dict[RequestId, Transit] = {}

    def has(self, request: RequestId) -> bool:
        return request in self.on or request in self.between

    def leave(self, request: RequestId) -> int | None:
        """The request is no longer on its instance. Returns the target that it was asked to go to, if any."""
        del self.on[request]
        return self.asked.pop(request, None)

    def may_come_to(self, index: int) -> bool:
        """True if a request is on its way to this instance, or may come back to it."""
        if index in self.asked.values():
            return True
        return any(index in (t.target, t.source if t.target is None else None) for t in self.between.values())

    def check_integrity(self, actual: Mapping[RequestId, int]) -> None:
        """Raise InternalError unless the requests are on the instances that `actual` tells."""
        if actual != self.on or actual.keys() & self.between.keys():
            raise InternalError("pool: a request is not where it should be")
        if self.asked.keys() - actual.keys():
            raise InternalError("pool: a request that is over was asked to leave")
