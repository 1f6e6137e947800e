"""Events: values that describe what happened to an instance, and the only way to change its state from
outside.

Requests come and go, operations complete. Every event carries its time, in seconds on the clock of the body
(the engine or the simulator). Events of equal time are applied in the order of their arrival.
"""

from dataclasses import dataclass

from tokenmux.core.errors import ErrorCode
from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.core.record import NO_HISTORY, RequestHistory
from tokenmux.core.request import FinishReason, Request, RequestId


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request was placed on this instance. It may have begun elsewhere, or before a node broke.

    `n_delivered` of its tokens exist already, and the KV of its first `n_kept` tokens lies in host memory;
    the rest is rebuilt. `is_paused` if its client does not read.
    """

    at_s: float
    request: Request
    n_delivered: int = 0
    n_kept: int = 0
    history: RequestHistory = NO_HISTORY
    is_paused: bool = False


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A request moves to another instance. It leaves as soon as no operation in flight touches it
    (`tokenmux.core.effects.RequestLeft`); `with_kv`, it is served and paged out before that."""

    at_s: float
    request: RequestId
    with_kv: bool = False


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A request must end now, wherever it is."""

    at_s: float
    request: RequestId
    reason: FinishReason = FinishReason.CANCELLED


@dataclass(frozen=True, slots=True)
class Paused:
    """The client has stopped reading: the request cannot run, and its deadlines stand still until
    `Resumed`."""

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
    """A model leaves the catalogue. Its requests have been cancelled already."""

    at_s: float
    model: ModelId


@dataclass(frozen=True, slots=True)
class ModelWanted:
    """An operator loads the model once (`wanted`), takes it off the device (`not wanted`), pins or unpins
    it."""

    at_s: float
    model: ModelId
    wanted: bool | None = None
    pinned: bool | None = None


@dataclass(frozen=True, slots=True)
class ResizeAsked:
    """An operator wants an arena of another size. Until `Resized` nothing new begins and everything leaves
    the arena."""

    at_s: float
    arena_bytes: int


@dataclass(frozen=True, slots=True)
class Resized:
    """The empty arena was reallocated. `arena_bytes` is the requested size, or the old size if the device
    had too little memory."""

    at_s: float
    arena_bytes: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step completed `len(ends_s)` of its iterations at these times. The requests listed drew their last
    token in it."""

    at_s: float
    operation: int
    ends_s: tuple[float, ...]
    finished: tuple[tuple[RequestId, FinishReason], ...] = ()


@dataclass(frozen=True, slots=True)
class CopyDone:
    """A copy or fetch ended: it succeeded, was `superseded` (stopped early on request), or failed. `error`
    says why it failed, and `code` what kind of error that is, if known. The channel is free in any case."""

    at_s: float
    operation: int
    error: str = ""
    code: ErrorCode | None = None
    superseded: bool = False

    @property
    def ok(self) -> bool:
        """True if everything was copied."""
        return not self.error and not self.superseded


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
