"""What happens to an instance, as values: the only way its state changes from outside.

Requests come and go, operations complete. Every event carries the time at which it happened, in seconds on
whatever clock the body (the runtime or the simulator) keeps. Events of equal time are applied in the order of
their arrival.
"""

from dataclasses import dataclass

from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.core.request import FinishReason, Request, RequestId


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request was placed on this instance, perhaps after another one or a broken worker had begun it.

    `n_delivered` of its tokens exist already; the KV of its first `n_kept` tokens lies in host memory, and
    what lacks is rebuilt. The other fields carry its history into the metrics.
    """

    at_s: float
    request: Request
    n_delivered: int = 0
    n_kept: int = 0
    n_on_time: int = 0
    first_token_s: float | None = None
    last_token_s: float | None = None
    artifact: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A request goes on elsewhere: it leaves as soon as nothing in flight touches it
    (`Instance.take_withdrawn`)."""

    at_s: float
    request: RequestId


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A request must end now, wherever it is."""

    at_s: float
    request: RequestId
    reason: FinishReason = FinishReason.CANCELLED


@dataclass(frozen=True, slots=True)
class Paused:
    """The client does not read: the request is not runnable and its deadlines stand still until `Resumed`."""

    at_s: float
    request: RequestId


@dataclass(frozen=True, slots=True)
class Resumed:
    at_s: float
    request: RequestId


@dataclass(frozen=True, slots=True)
class ModelAdded:
    at_s: float
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class ModelRemoved:
    """A model leaves the catalogue. Its requests were cancelled before."""

    at_s: float
    model: ModelId


@dataclass(frozen=True, slots=True)
class ModelWanted:
    """An operator wants the model resident (`wanted`) or off the device (`not wanted`) once; pins it, or
    unpins it."""

    at_s: float
    model: ModelId
    wanted: bool | None = None
    pinned: bool | None = None


@dataclass(frozen=True, slots=True)
class ResizeAsked:
    """An operator wants another size of the arena: nothing new begins, and everything leaves it, until
    `Resized`."""

    at_s: float
    arena_bytes: int


@dataclass(frozen=True, slots=True)
class Resized:
    """The empty arena was replaced by one of this size: the one asked for, or that of before where the device
    has not so much."""

    at_s: float
    arena_bytes: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step completed `len(ends_s)` of its iterations, at these times; these requests drew their last token
    in it."""

    at_s: float
    operation: int
    ends_s: tuple[float, ...]
    finished: tuple[tuple[RequestId, FinishReason], ...] = ()


SUPERSEDED = "superseded: it made way for what is more urgent"
"""The `error` of a copy or fetch that ended early because it was asked to."""


@dataclass(frozen=True, slots=True)
class CopyDone:
    """A copy or fetch completed; `error` says why it did not (the channel is free again either way)."""

    at_s: float
    operation: int
    error: str = ""


Event = (
    Arrived
    | Withdrawn
    | Cancelled
    | Paused
    | Resumed
    | ModelAdded
    | ModelRemoved
    | ModelWanted
    | ResizeAsked
    | Resized
    | StepDone
    | CopyDone
)
