"""Operations that have begun, a class for each kind: what a body needs to carry one out.

Each occupies its `channel` until its completion comes back as an event with the same `id`. `operation` is
what the policy planned, `at_s` when it began.
"""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, NamedTuple

from tokenmux.core.cost import StepWork
from tokenmux.core.facts import Image, ImageId, ModelFacts
from tokenmux.core.handles import ExtentMove, Transfer
from tokenmux.core.plan import Activate, Channel, Compact, Fetch, PageIn, PageOut, Step
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
class StartedStep:
    """A forward pass, or several alike. `work` is that of the first iteration."""

    channel: ClassVar[Channel] = Channel.COMPUTE

    id: int
    at_s: float
    operation: Step
    model: ModelFacts
    work: StepWork


@dataclass(frozen=True, slots=True)
class StartedActivation:
    """A copy of `images` from the host cache into their extents of the arena."""

    channel: ClassVar[Channel] = Channel.COPY_IN

    id: int
    at_s: float
    operation: Activate
    model: ModelFacts
    images: tuple[Image, ...]
    n_bytes: int
    reason: SwapReason
    compute_s: float
    """Seconds of steps that the instance had run when this began. What it runs during the copy hides it."""


@dataclass(frozen=True, slots=True)
class StartedFetch:
    """A read of `images` from disk into the host cache, which forgets `dropped` first."""

    channel: ClassVar[Channel] = Channel.FETCH

    id: int
    at_s: float
    operation: Fetch
    model: ModelFacts
    images: tuple[Image, ...]
    dropped: tuple[ImageId, ...]
    n_bytes: int


class PagedRequest(NamedTuple):
    """The blocks of one request that a page-in or a page-out copies."""

    request: RequestId
    n_computed: int
    """Number of tokens whose KV existed when the copy began. Tokens that a step adds later need not be
    copied."""
    transfers: tuple[Transfer, ...]


@dataclass(frozen=True, slots=True)
class StartedPageIn:
    """A copy of KV blocks from host memory into the arena."""

    channel: ClassVar[Channel] = Channel.COPY_IN

    id: int
    at_s: float
    operation: PageIn
    paged: tuple[PagedRequest, ...]
    n_bytes: int


@dataclass(frozen=True, slots=True)
class StartedPageOut:
    """A copy of KV blocks from the arena to host memory."""

    channel: ClassVar[Channel] = Channel.COPY_OUT

    id: int
    at_s: float
    operation: PageOut
    paged: tuple[PagedRequest, ...]
    n_bytes: int


@dataclass(frozen=True, slots=True)
class StartedCompaction:
    """Moves of extents and slabs inside the arena, in order."""

    channel: ClassVar[Channel] = Channel.COPY_IN

    id: int
    at_s: float
    operation: Compact
    moves: tuple[ExtentMove, ...]
    n_bytes: int


StartedLoad = StartedActivation | StartedFetch
"""An operation that brings weights nearer to the device."""

StartedPaging = StartedPageIn | StartedPageOut

StartedCopy = StartedLoad | StartedPaging | StartedCompaction
"""Any operation but a step: `n_bytes` are copied, moved or read."""

Started = StartedStep | StartedCopy
