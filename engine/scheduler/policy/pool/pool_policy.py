"""What a pool's policy may read and what it must answer: on which instance a request goes, and when it
changes.

Like the policy of an instance it is asked and answers with values; it keeps its own memory and starts nothing
itself. There are no timers: it is told of what happens, and may answer with moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenmux.core.event import Event
from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.core.request import Request, RequestId
from tokenmux.scheduler.policy.instance_policy import InstanceView


class PoolView(Protocol):
    """The instances of a pool at one moment, in their fixed order."""

    @property
    def now_s(self) -> float: ...
    @property
    def instances(self) -> Sequence[InstanceView]: ...
    def facts(self, model: ModelId) -> ModelFacts: ...


@dataclass(frozen=True, slots=True)
class Place:
    """The request goes to the instance of this index."""

    instance: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request is not accepted; the reason is fit for its client and names the remedy."""

    reason: str


@dataclass(frozen=True, slots=True)
class Move:
    """A live request goes on elsewhere. Its KV goes along as far as host memory has it; the rest is
    rebuilt there."""

    request: RequestId
    source: int
    target: int


class PoolPolicy(Protocol):
    """Decisions over a pool."""

    @property
    def name(self) -> str: ...

    def place(self, request: Request, pool: PoolView) -> Place | Refuse:
        """Admit: where an arriving request goes, if anywhere. It is there before anything else is asked."""
        ...

    def on_event(self, index: int, event: Event, pool: PoolView) -> Sequence[Move]:
        """Called after every event of instance `index`, and after that instance's own policy."""
        ...

    def on_left(self, index: int, request: Request) -> None:
        """The request ended on instance `index`, or has left it for another one."""
        ...
