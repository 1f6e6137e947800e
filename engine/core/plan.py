"""What a policy wants next, as values. A policy decides, the instance validates, a device carries out.

An instance has channels that run at the same time. Whenever one is free the policy is asked what it does
next:

    copy-in    Activate(model) | PageIn(requests) | Compact()      host memory ──▶ arena
    copy-out   PageOut(request)                                    arena ──▶ host memory
    fetch      Fetch(model)                                        disk ──▶ host cache
    compute    Step(model, chunks, repeat)                         one forward pass, or several alike

An answer may begin with actions that take effect at once (`Evict`, `Drop`, `Discard`): they make room for the
operation and cost no time.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from tokenmux.core.facts import ModelId
from tokenmux.core.request import RequestId


class Channel(IntEnum):
    """Channels, in the order in which free ones are asked."""

    COPY_IN = 0
    COPY_OUT = 1
    FETCH = 2
    COMPUTE = 3


class Chunk(NamedTuple):
    """Advance a request over its tokens `[start, start + n_tokens)`.

        prompt                      | output so far   | next
        [........computed.....][chunk ->              ]
                               start        start + n_tokens

    If the chunk ends at the last existing token, the step also draws the next one. Decoding is a chunk with
    `start` at that last token and `n_tokens == 1`. Inside the prompt, chunks begin and end on the prefill
    grid (multiples of the device's `cut_tokens`) or at the prompt's end: token-exactness depends on
    it.
    """

    request: RequestId
    start: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of one model; `repeat > 1` runs the same decode step that many times without asking
    the policy again.

    A repeated step ends early when one of its requests finishes, or when the policy wants to be asked.
    """

    model: ModelId
    chunks: tuple[Chunk, ...]
    repeat: int = 1


@dataclass(frozen=True, slots=True)
class Activate:
    """Copy a model's weights from the host cache into the arena."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class PageIn:
    """Copy to the device all blocks of these requests that are only on the host."""

    requests: tuple[RequestId, ...]


@dataclass(frozen=True, slots=True)
class Compact:
    """Move extents and slabs inside the arena so that `n_bytes` become contiguous."""

    n_bytes: int


@dataclass(frozen=True, slots=True)
class PageOut:
    """Copy to the host all blocks of these requests that it lacks. The device keeps its copies, now clean."""

    requests: tuple[RequestId, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read a model's images from disk into the host cache."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Evict:
    """Forget the device copy of a model's weights. They are read-only, and the host or the disk has them."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget the device copies of a request's clean blocks."""

    request: RequestId


@dataclass(frozen=True, slots=True)
class Discard:
    """Forget all KV of a request, to be rebuilt from its token ids. A last resort, and counted."""

    request: RequestId


Operation = Activate | PageIn | Compact | PageOut | Fetch | Step
AtOnce = Evict | Drop | Discard


@dataclass(frozen=True, slots=True)
class Plan:
    """A policy's answer for one free channel: the actions `at_once`, then the operation (None leaves the
    channel idle)."""

    operation: Operation | None = None
    at_once: tuple[AtOnce, ...] = ()


IDLE = Plan()
