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
    """Requests wait for it, and it has not been here since it was registered."""
    AGAIN = "again"
    """Requests wait for it, and it had to leave before: the price of sharing."""
    OPERATOR = "operator"
    """No request waits for it; an operator pinned it or asked for it."""
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
    """Of a step, an activation or a fetch."""
    work: StepWork = NO_WORK
    """Of a step, its first iteration."""
    images: tuple[Image, ...] = ()
    """To be copied by an activation, or read by a fetch."""
    dropped: tuple[ImageId, ...] = ()
    """To be forgotten by the host cache before a fetch."""
    transfers: tuple[tuple[RequestId, tuple[Transfer, ...]], ...] = ()
    """Blocks to be copied by a page-in or page-out, by request."""
    moves: tuple[ExtentMove, ...] = ()
    """Of a compaction."""
