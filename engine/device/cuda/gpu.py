"""The CUDA device's interface to a GPU, and torch's GPU behind it: memory, three streams, events, copies,
page-locked host memory.

A stream is named by its channel: `COMPUTE`, `COPY_IN`, `COPY_OUT`. Work on a stream runs in the order in
which it was enqueued; only `GpuEvent.hold` orders one stream after another, and only `GpuEvent.wait` waits.
Only long-stable parts of `torch.cuda` are used.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Thread
from typing import Protocol

import torch

from tokenmux.core.errors import ConfigError, DoesNotFit
from tokenmux.core.plan import Channel
from tokenmux.kernels.layout import KVLayout

_log = logging.getLogger(__name__)

STREAMS = (Channel.COMPUTE, Channel.COPY_IN, Channel.COPY_OUT)

_PORTABLE_AND_MAPPED = 1 | 2
"""`cudaHostRegisterPortable` and `cudaHostRegisterMapped`: for copy engines, and for kernels."""


class GpuEvent(Protocol):
    """A moment in a stream: it has passed when all work enqueued before it is done."""

    def wait(self) -> None:
        """Sleep until it has passed. Raises what the work before it raised."""
        ...

    def hold(self, channel: Channel) -> None:
        """Make later work on that stream begin after this event. Returns at once."""
        ...


class Gpu(Protocol):
    """One GPU. Callable from any thread. A call may raise a RuntimeError, after which every other call
    does too."""

    @property
    def name(self) -> str: ...

    @property
    def capability(self) -> int:
        """Compute capability, as major * 10 + minor."""
        ...

    def allocate(self, n_bytes: int) -> torch.Tensor:
        """Device memory as a `uint8` tensor, zeroed. Raises DoesNotFit."""
        ...

    def release(self, memory: torch.Tensor) -> None:
        """Return device memory to the driver now, even if there are views of it. torch keeps page-locked
        memory for later use."""
        ...

    def allocate_locked(self, n_bytes: int) -> torch.Tensor:
        """Page-locked host memory as a `uint8` tensor."""
        ...

    def lock(self, address: int, n_bytes: int) -> bool:
        """Page-lock host memory in place, so that the device reaches it. False if the system refuses.

        A copy must stay within memory that was locked in one call; a kernel may touch any locked memory.
        """
        ...

    def unlock(self, address: int) -> None:
        """Undo the `lock` that begins at `address`. No copy of that memory may be in flight."""
        ...

    def copy(self, channel: Channel, *copies: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Enqueue copies, one after another: target and source of each.

        They are `uint8` tensors of equal size that do not overlap; host memory is page-locked.
        """
        ...

    def copy_blocks(
        self,
        channel: Channel,
        target: torch.Tensor,
        source: torch.Tensor,
        offsets: torch.Tensor,
        block_bytes: int,
    ) -> None:
        """Enqueue one kernel that copies blocks between `uint8` tensors, each in device memory or
        page-locked.

        `offsets` `[2, block]` (int64, device memory) holds the place of each block in `target` and in
        `source`; it is read when the kernel runs. `block_bytes` and all offsets are multiples of 16; blocks
        do not overlap.
        """
        ...

    def quantise_blocks(
        self,
        channel: Channel,
        host: torch.Tensor,
        arena: torch.Tensor,
        offsets: torch.Tensor,
        layout: KVLayout,
    ) -> None:
        """Like `copy_blocks`, but to records in int8 (`kernels/kv_page`): from blocks of `arena`, in the
        model's dtype, to `host`, in bytes."""
        ...

    def dequantise_blocks(
        self,
        channel: Channel,
        arena: torch.Tensor,
        host: torch.Tensor,
        offsets: torch.Tensor,
        layout: KVLayout,
    ) -> None:
        """The reverse of `quantise_blocks`; here too `offsets` hold the target first."""
        ...

    def record(self, channel: Channel) -> GpuEvent:
        """An event that passes when all work enqueued until now is done."""
        ...

    def running(self, channel: Channel) -> AbstractContextManager[object]:
        """In the block, what this thread asks torch to do goes to that stream."""
        ...


@dataclass(frozen=True, slots=True)
class _TorchEvent:
    event: torch.cuda.Event
    streams: dict[Channel, torch.cuda.Stream]

    def wait(self) -> None:
        self.event.synchronize()

    def hold(self, channel: Channel) -> None:
        self.streams[channel].wait_event(self.event)


class TorchGpu:
    """The first CUDA device that torch sees (`CUDA_VISIBLE_DEVICES` selects it). Raises ConfigError if
    there is none."""

    def __init__(self) -> None:
        check_cuda()
        sum_in_float32()
        self._device = torch.device("cuda", 0)
        # The GPU schedules a step's programs before those of a copy kernel that waits at the same time.
        priorities = {channel: -1 if channel is Channel.COMPUTE else 0 for channel in STREAMS}
        self._streams = {
            channel: torch.cuda.Stream(self._device, priority)  # type: ignore[no-untyped-call]
            for channel, priority in priorities.items()
        }

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self._device)

    @property
    def capability(self) -> int:
        major, minor = torch.cuda.get_device_capability(self._device)
        return 10 * major + minor

    def allocate(self, n_bytes: int) -> torch.Tensor:
        try:
            memory = torch.zeros(n_bytes, dtype=torch.uint8, device=self._device)
        except torch.OutOfMemoryError:
            free, total = torch.cuda.mem_get_info(self._device)
            raise DoesNotFit(
                f"{n_bytes} bytes cannot be allocated on {self.name}, where {free} of {total} are free: "
                "lower device.arena, or stop other programs there"
            ) from None
        # torch zeroed it on the default stream, for which ours do not wait.
        torch.cuda.synchronize(self._device)
        return memory

    def release(self, memory: torch.Tensor) -> None:
        memory.untyped_storage().resize_(0)
        torch.cuda.empty_cache()

    def allocate_locked(self, n_bytes: int) -> torch.Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)

    def lock(self, address: int, n_bytes: int) -> bool:
        status = _in_a_thread(lambda: _cudart().cudaHostRegister(address, n_bytes, _PORTABLE_AND_MAPPED))
        if status:
            _log.warning("%d bytes of host memory cannot be page-locked (CUDA error %d)", n_bytes, status)
        return not status

    def unlock(self, address: int) -> None:
        status = _in_a_thread(lambda: _cudart().cudaHostUnregister(address))
        if status:
            raise RuntimeError(f"cudaHostUnregister failed with CUDA error {status}")

    def copy(self, channel: Channel, *copies: tuple[torch.Tensor, torch.Tensor]) -> None:
        with self.running(channel):
            for target, source in copies:
                target.copy_(source, non_blocking=True)

    def copy_blocks(
        self,
        channel: Channel,
        target: torch.Tensor,
        source: torch.Tensor,
        offsets: torch.Tensor,
        block_bytes: int,
    ) -> None:
        # Imported here because Triton is optional. Only steps, which need it too, make blocks that can be
        # paged.
        from tokenmux.kernels.kv_page.launch import kv_page

        with self.running(channel):
            kv_page(target, source, offsets, block_bytes=block_bytes)

    def quantise_blocks(
        self,
        channel: Channel,
        host: torch.Tensor,
        arena: torch.Tensor,
        offsets: torch.Tensor,
        layout: KVLayout,
    ) -> None:
        from tokenmux.kernels.kv_page.launch import kv_page_out_int8

        with self.running(channel):
            kv_page_out_int8(host, arena, offsets, layout=layout)

    def dequantise_blocks(
        self,
        channel: Channel,
        arena: torch.Tensor,
        host: torch.Tensor,
        offsets: torch.Tensor,
        layout: KVLayout,
    ) -> None:
        from tokenmux.kernels.kv_page.launch import kv_page_in_int8

        with self.running(channel):
            kv_page_in_int8(arena, host, offsets, layout=layout)

    def record(self, channel: Channel) -> _TorchEvent:
        # Blocking, so that a waiting thread sleeps instead of spinning on a core that steps need.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._streams[channel])
        return _TorchEvent(event, self._streams)

    def running(self, channel: Channel) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._streams[channel])


def sum_in_float32() -> None:
    """Make 16-bit products accumulate in float32 throughout, for the whole process.

    By default cuBLAS may add the parts of a split sum in 16 bits, which loses precision and makes the result
    depend on the algorithm.
    """
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def check_cuda() -> None:
    """Raise ConfigError, with the remedy, unless torch can use a CUDA device. Does not create a CUDA
    context."""
    if torch.version.cuda is None:
        raise ConfigError(
            f"device.kind: cuda needs a torch that was built for CUDA, and this one is {torch.__version__}: "
            "install PyTorch's build for CUDA, or set `kind: cpu`"
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device.kind: cuda needs an NVIDIA GPU, and torch {torch.__version__} sees none: look "
            "at `nvidia-smi` and at "
            "CUDA_VISIBLE_DEVICES, or set `kind: cpu`"
        )


def _cudart() -> "_Cudart":
    runtime: _Cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    return runtime


class _Cudart(Protocol):
    """The part of `torch.cuda.cudart()` that is used; both functions return a status that is 0 on success."""

    def cudaHostRegister(self, address: int, n_bytes: int, flags: int) -> int: ...
    def cudaHostUnregister(self, address: int) -> int: ...


def _in_a_thread(call: Callable[[], int]) -> int:
    """Call in a separate thread.

    The runtime keeps the error of a failed call for the calling thread, where the next kernel launch would
    report it as its own; torch offers no way to clear it.
    """
    status: list[int] = []
    thread = Thread(target=lambda: status.append(int(call())), name="tokenmux-page-lock")
    thread.start()
    thread.join()
    if not status:
        raise RuntimeError("the CUDA runtime cannot be called")
    return status[0]
