"""What an event or a decision caused in an instance, as values: the only way out of it.

`Instance.apply` and `Instance.decide` return effects in the order in which they happened, and a body carries
them out in that order. Metrics and timelines are counted from them too, so a body may leave alone what does
not concern it:

    to do      a `Started` kind, Interrupt, Supersede, ResizeReady
    to tell    PhaseChanged, PrefixTaken, RequestEnded, RequestLeft
    done       Evict, Drop, Discard: in the books at once; a body that points at weights lets go of them
    ended      StepEnded, CopyEnded: a body that points at weights looks where they are now
    to count   RequestEntered, ModelLoaded, and all of the above
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tokenmux.core.event import Arrived, CopyDone, StepDone
from tokenmux.core.phases import PhaseChanged
from tokenmux.core.plan import AtOnce, Operation
from tokenmux.core.record import RequestRecord
from tokenmux.core.request import Request
from tokenmux.core.started import Started, StartedActivation, StartedCopy, StartedStep


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The repeated step in flight should end after its present iteration."""


INTERRUPT = Interrupt()


@dataclass(frozen=True, slots=True)
class Supersede:
    """The activation or fetch in flight with the id `operation` should end at its next chunk, as a
    `superseded` `CopyDone`."""

    operation: int


@dataclass(frozen=True, slots=True)
class ResizeReady:
    """The arena is empty and the device idle: give it `arena_bytes`, then apply `Resized`."""

    arena_bytes: int


@dataclass(frozen=True, slots=True)
class RequestEntered:
    """A request is on this instance from now on."""

    request: Request


@dataclass(frozen=True, slots=True)
class PrefixTaken:
    """A request has the KV of `n_tokens` more tokens of its prompt, which others computed."""

    request: Request
    n_tokens: int


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """A request has ended. `detail` says why to its client if it failed."""

    record: RequestRecord
    detail: str


@dataclass(frozen=True, slots=True)
class RequestLeft:
    """A withdrawn request has left. `arrival` places it on its next instance."""

    arrival: Arrived


class StepRow(NamedTuple):
    """What a step did for one of its requests."""

    tenant: str
    n_tokens: int
    """Number of tokens whose KV one iteration computed."""
    n_prompt_tokens: int
    draws: bool
    """True if every iteration drew a token."""
    n_on_time: int = 0
    """How many of the drawn tokens were on time."""
    since_s: float | None = None
    """When the token before came, or later by the client's pauses; None if there was none."""
    ttft_s: float | None = None
    """Time from its arrival to its first token, if that was drawn in this step."""


@dataclass(frozen=True, slots=True)
class StepEnded:
    """A step ended. `rows` has one entry for each of its chunks."""

    started: StartedStep
    done: StepDone
    rows: tuple[StepRow, ...]


@dataclass(frozen=True, slots=True)
class CopyEnded:
    """A copy, a move or a fetch ended, successfully or not."""

    started: StartedCopy
    done: CopyDone


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """A model's weights came to the device. No step ran during `exposed_s` of the copy, while requests of
    `tenants` waited."""

    started: StartedActivation
    seconds: float
    exposed_s: float
    tenants: tuple[str, ...]


OperationEnded = StepEnded | CopyEnded

Effect = (
    PhaseChanged
    | Started
    | AtOnce
    | StepEnded
    | CopyEnded
    | RequestEntered
    | PrefixTaken
    | RequestEnded
    | RequestLeft
    | Interrupt
    | Supersede
    | ModelLoaded
    | ResizeReady
)

Effects = tuple[Effect, ...]


def operations_started(effects: Effects) -> list[Started]:
    """The operations that began."""
    return [effect for effect in effects if isinstance(effect, Started)]


def decisions(effects: Effects) -> Iterator[Operation | AtOnce]:
    """What the policy decided: a line of the decision log for each."""
    for effect in effects:
        if isinstance(effect, AtOnce):
            yield effect
        elif isinstance(effect, Started):
            yield effect.operation
