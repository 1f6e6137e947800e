"""What a device does for an executor: carry out launches on four channels and report each completion.

    cpu    a virtual GPU: an arena of host memory, real copies on threads of their own, real steps
    cuda   a GPU: streams ordered by events, page-locked host memory

A launch holds offsets, indices of blocks and token ids: a device knows no ledger, no policy and no requests.
Launches on one channel are carried out in order, one at a time, so the next one may be handed over early.
"""

from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING, Protocol

from tokenmux.core.facts import Image, ImageId, KvShape, ModelId
from tokenmux.core.plan import Channel
from tokenmux.messages.completions import CopyCompleted, CopyProgressed, Drew, StepCompleted
from tokenmux.messages.launches import (
    FetchLaunch,
    Launch,
    MoveLaunch,
    OperationId,
    PagingLaunch,
    StepLaunch,
    WeightsLaunch,
)

if TYPE_CHECKING:  # what names a device needs no torch
    import torch

LaunchReport = Drew | StepCompleted | CopyProgressed | CopyCompleted


def channel_of(launch: Launch) -> Channel:
    """The channel on which a launch is carried out."""
    match launch:
        case StepLaunch():
            return Channel.COMPUTE
        case WeightsLaunch() | MoveLaunch():
            return Channel.COPY_IN
        case PagingLaunch(into_device=into_device):
            return Channel.COPY_IN if into_device else Channel.COPY_OUT
        case FetchLaunch():
            return Channel.FETCH


class Post(Protocol):
    """How a device reports; callable from any thread."""

    def tell(self, report: LaunchReport) -> None:
        """Progress or the end of a launch."""
        ...

    def broken(self, operation: int, error: BaseException) -> None:
        """An operation failed in a way from which the device cannot recover."""
        ...


class Device(Protocol):
    """Mechanism without policy. One thread calls everything here."""

    def start(self, launch: Launch) -> None:
        """Begin an operation once those before it on its channel have ended. Its completion is posted, never
        returned."""
        ...

    def stop_step(self, operation: OperationId) -> None:
        """End this repeated step after its present iteration, or after its first if it has not begun."""
        ...

    def stop_copy(self, operation: OperationId) -> None:
        """Stop this copy of weights or fetch at its next chunk: it completes as `superseded`. It may succeed
        first."""
        ...

    def map_image(self, image: ImageId, n_bytes: int, descriptor: int, *, filled: bool) -> None:
        """Take over the descriptor of an image's memory, which is mapped when it is needed. Returns at once.
        An image that is `filled` is made ready for its models on a thread of its own."""
        ...

    def unmap_image(self, image: ImageId) -> None:
        """Give up an image once no launch started before this uses it."""
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

    def run(self, stop: Event, post: Post, settle: Callable[[], None]) -> None:
        """Run the iterations; post `Drew` after each but the last, and `StepCompleted` at the end.

        `settle` returns when the device has finished everything asked of it until then: before that, no
        iteration is over and its time is unknown.
        """
        ...


class Host(Protocol):
    """What a device needs from its surroundings: the models that run on it."""

    def read_image(
        self, model: ModelId, image: Image, into: memoryview, progress: Callable[[int], None]
    ) -> None:
        """Fill the buffer with an image's bytes from disk, arrange them for the device, and get the model
        ready; call `progress` with the size of every piece.

        Raises TokenmuxError if the model cannot be run.
        """
        ...

    def adopt_image(self, image: ImageId, content: memoryview, opened: Callable[[], None]) -> None:
        """Get the models of an image ready that another process has read and arranged. `opened` is called
        once their files are.

        Raises TokenmuxError if a model cannot be run.
        """
        ...

    def prepare_step(self, launch: StepLaunch) -> StepJob:
        """Resolve what a step needs, on the thread that starts it."""
        ...

    def kv_shape(self, model: ModelId) -> KvShape: ...

    def kv_dtype(self, model: ModelId) -> "torch.dtype":
        """The dtype of the model's keys and values. May read its files."""
        ...

    def weights_span(self, model: ModelId) -> tuple[int, int]:
        """The bytes `[start, end)` of the arena to which the model is bound."""
        ...

    def detach(self) -> None:
        """The arena is about to be replaced: drop everything that points into it."""
        ...

    def attach(self, arena: "torch.Tensor") -> None:
        """Use `arena`, all of it as bytes. A device calls this when it is made, and after each resize."""
        ...
