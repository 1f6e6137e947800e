"""An operation that has begun: what a body (the runtime or the simulator) needs to carry it out."""

from dataclasses import dataclass
from enum import Enum

from tokenmux.core.cost import NO_WORK, StepWork
from tokenmux.core.facts import Image, ImageId, ModelFacts
from tokenmux.core.handles import ExtentMove, Transfer
from tokenmux.core.plan import Channel, Operation
from tokenmux.core.request import RequestId


class SwapReason(Enum):
    """Why a model's weights are brought to the device."""

    FIRST = "first"
    """Requests wait for it, and it is loaded for the first time since its registration."""
    AGAIN = "again"
    """Requests wait for it, and it was evicted before: the price of sharing."""
    OPERATOR = "operator"
    """No request waits for it; an operator pinned or loaded it."""
    AHEAD = "ahead"
    """No request waits for it; the policy expects one."""


@dataclass(frozen=True, slots=True)
class Started:
    """One operation in flight on one channel. Its completion comes back as an event with the same `id`."""

    id: int
    channel: Channel
    operation: Operation
    at_s: float
    n_bytes: int = 0
    model: ModelFacts | None = None
    """The model of a step, an activation or a fetch."""
    work: StepWork = NO_WORK
    """The work of a step's first iteration."""
    images: tuple[Image, ...] = ()
    """What an activation copies, or a fetch reads."""
    dropped: tuple[ImageId, ...] = ()
    """What the host cache forgets before a fetch."""
    transfers: tuple[tuple[RequestId, tuple[Transfer, ...]], ...] = ()
    """Blocks that a page-in or page-out copies, by request."""
    moves: tuple[ExtentMove, ...] = ()
    """The moves of a compaction."""
