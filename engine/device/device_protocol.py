"""What a device does for an engine: carry out operations on four channels and say when each completed.

    null   completes everything after the cost model's durations on virtual time, and computes nothing
    cpu    a virtual GPU: an arena of host memory, real copies on threads of their own, real steps
    cuda   a GPU: streams ordered by events, page-locked host memory

The engine starts an operation; the device posts a completion event. Everything that reads the ledger happens
inside `start`, on the engine's thread, so that handles become addresses at launch and at no other time.
"""

from collections.abc import Callable, Sequence
from threading import Event
from typing import TYPE_CHECKING, Protocol

from tokenmux.core.event import CopyDone, StepDone
from tokenmux.core.facts import Image
from tokenmux.core.request import RequestId
from tokenmux.core.started import Started

if TYPE_CHECKING:  # a null device needs no torch
    import torch

OperationDone = StepDone | CopyDone


class Post(Protocol):
    """Where a device reports to; callable from any thread."""

    def drawn(self, at_s: float, tokens: tuple[tuple[RequestId, int], ...]) -> None:
        """One iteration of the step in flight drew these tokens."""
        ...

    def done(self, completion: OperationDone) -> None:
        """An operation completed."""
        ...

    def progress(self, operation: int, share: float) -> None:
        """A long copy or fetch has done this share (0 to 1) of its bytes; a few times a second."""
        ...

    def broken(self, operation: int, error: BaseException) -> None:
        """An operation failed in a way that the device does not recover from."""
        ...


class Device(Protocol):
    """Mechanism without policy."""

    def start(self, started: Started) -> None:
        """Begin an operation. Its channel is free; completion is posted, never returned."""
        ...

    def interrupt(self) -> None:
        """End the repeated step in flight after its present iteration."""
        ...

    def supersede(self, operation: int) -> None:
        """End this activation or fetch at its next chunk, with the error `SUPERSEDED`; it may just have
        completed instead."""
        ...

    def resize(self, arena_bytes: int) -> None:
        """Give the arena's memory back to the system and take so much in its place, with nothing in flight
        and nothing in the arena.

        Raises DoesNotFit where there is not so much; the arena then has the size that it had. After any other
        error there is none.
        """
        ...

    def close(self) -> None:
        """Stop all channels and return the memory."""
        ...


class StepJob(Protocol):
    """A step that is ready to run, on the compute channel's thread."""

    def kv_blocks(self) -> Sequence[tuple[Sequence[int], int]]:
        """For each chunk the indices of its KV blocks, and how many tokens these hold; the step writes after
        them."""
        ...

    def run(self, operation: int, interrupted: Event, post: Post, settle: Callable[[], None]) -> None:
        """Run the iterations, posting `drawn` after each and `done` at the end.

        `settle` returns when the device has done what it was asked for until then: before that nothing is
        over, nor its time known.
        """
        ...


class Host(Protocol):
    """What a device needs of its surroundings."""

    def read_image(self, image: Image, into: memoryview, progress: Callable[[int], None]) -> None:
        """Fill the buffer with an image's bytes from disk, telling `progress` of every piece.

        Raises TokenmuxError where the file is bad.
        """
        ...

    def prepare_step(self, started: Started) -> StepJob:
        """Resolve what a step needs, on the engine's thread."""
        ...

    def detach(self) -> None:
        """The arena is about to be replaced: keep nothing that points there."""
        ...

    def attach(self, arena: "torch.Tensor") -> None:
        """The arena is there again, all of it as bytes, perhaps of another size."""
        ...
