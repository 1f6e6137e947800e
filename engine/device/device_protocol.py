"""What a device does for an engine: carry out operations on four channels and report each completion.

    cpu    a virtual GPU: an arena of host memory, real copies on threads of their own, real steps
    cuda   a GPU: streams ordered by events, page-locked host memory

The simulator's device (`tokenmux.simulator.virtual_device`) satisfies it too: it computes nothing, and
completes everything after a cost model's durations on virtual time.

The engine starts an operation; the device posts a completion event. Everything that reads the ledger happens
inside `start`, on the engine's thread, so that handles become addresses at launch and at no other time.
"""

from collections.abc import Callable, Sequence
from threading import Event
from typing import TYPE_CHECKING, Protocol

from tokenmux.core.event import CopyDone, StepDone
from tokenmux.core.facts import Image
from tokenmux.core.request import RequestId
from tokenmux.core.started import Started, StartedStep

if TYPE_CHECKING:  # what names a device needs no torch
    import torch

OperationDone = StepDone | CopyDone


class Post(Protocol):
    """How a device reports; callable from any thread."""

    def drawn(self, at_s: float, tokens: tuple[tuple[RequestId, int], ...]) -> None:
        """One iteration of the step in flight drew these tokens."""
        ...

    def done(self, completion: OperationDone) -> None:
        """An operation completed."""
        ...

    def progress(self, operation: int, share: float) -> None:
        """A long copy or fetch has done this share (0 to 1) of its bytes. Called a few times a second."""
        ...

    def broken(self, operation: int, error: BaseException) -> None:
        """An operation failed in a way from which the device cannot recover."""
        ...


class Device(Protocol):
    """Mechanism without policy."""

    def start(self, started: Started) -> None:
        """Begin an operation on a free channel. Its completion is posted, never returned."""
        ...

    def interrupt(self) -> None:
        """End the repeated step in flight after its present iteration."""
        ...

    def supersede(self, operation: int) -> None:
        """Stop this activation or fetch at its next chunk, with the error `SUPERSEDED`. It may complete
        first."""
        ...

    def resize(self, arena_bytes: int) -> None:
        """Free the arena and allocate one of `arena_bytes`. The arena must be empty and the device idle.

        Raises DoesNotFit if there is too little memory; the arena then keeps its old size. After any other
        error there is no arena.
        """
        ...

    def close(self) -> None:
        """Stop all channels and free the memory."""
        ...


class StepJob(Protocol):
    """A step that is ready to run, on the compute channel's thread."""

    def kv_blocks(self) -> Sequence[tuple[Sequence[int], int]]:
        """For each chunk, the indices of its KV blocks and the number of tokens that they hold; the step
        writes after those."""
        ...

    def run(self, operation: int, interrupted: Event, post: Post, settle: Callable[[], None]) -> None:
        """Run the iterations; post `drawn` after each and `done` at the end.

        `settle` returns when the device has finished everything asked of it until then: before that, no
        iteration is over and its time is unknown.
        """
        ...


class Host(Protocol):
    """What a device needs from its surroundings."""

    def read_image(self, image: Image, into: memoryview, progress: Callable[[int], None]) -> None:
        """Fill the buffer with an image's bytes from disk; call `progress` with the size of every piece.

        Raises TokenmuxError if the file is bad.
        """
        ...

    def prepare_step(self, started: StartedStep) -> StepJob:
        """Resolve what a step needs, on the engine's thread."""
        ...

    def detach(self) -> None:
        """The arena is about to be replaced: drop everything that points into it."""
        ...

    def attach(self, arena: "torch.Tensor") -> None:
        """Use `arena`, all of it as bytes. A device calls this when it is made, and after each resize."""
        ...
