"""What a pool's policy may read and what it must answer: which instance a request goes to, and when it moves.

Like the policy of an instance it is asked and answers with values; it keeps its own state and starts nothing
itself. There are no timers: it is told what happens, and may answer with moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenmux.core.event import Event
from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.core.request import Request, RequestId
from tokenmux.scheduler.policy.instance_policy import InstanceView


class PoolView(Protocol):
    """The instances of a pool at one moment, in a fixed order."""

    @property
    def now_s(self) -> float: ...
    @property
    def instances(self) -> Sequence[InstanceView]:
        """All that there have ever been: a removed one stays, empty."""
        ...

    @property
    def open(self) -> Sequence[int]:
        """Indices of the instances that serve and take requests, in order."""
        ...

    def takes(self, index: int, request: Request) -> bool:
        """True if the request may be placed on this instance: it is open, and has room for the request."""
        ...

    def facts(self, model: ModelId) -> ModelFacts: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Accept the request on the instance with this index."""

    instance: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Reject the request. The reason is shown to its client and names the remedy."""

    reason: str


@dataclass(frozen=True, slots=True)
class Move:
    """Move a live request to another instance that takes it. It goes on where it is until host memory has its
    KV, as far as there is room, and only then leaves; the rest is rebuilt there."""

    request: RequestId
    source: int
    target: int


class PoolPolicy(Protocol):
    """Decisions over a pool."""

    @property
    def name(self) -> str: ...

    def place(self, request: Request, pool: PoolView) -> Place | Refuse:
        """Place an arriving request on an instance that takes it, of which there is at least one, or refuse
        it. It is on its instance before anything else is asked."""
        ...

    def on_event(self, index: int, event: Event, pool: PoolView) -> Sequence[Move]:
        """Called after every event of instance `index`, and after that instance's own policy."""
        ...

    def on_left(self, index: int, request: Request) -> None:
        """The request ended on instance `index`, or has left it for another one. If it ends while it moves,
        or cannot go where it should, this is called for the target of the move too."""
        ...
