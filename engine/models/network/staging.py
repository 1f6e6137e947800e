"""Copies of small arrays between a step and its device, through one piece of page-locked memory, made once.

    upload   arrays into the piece, then one copy to the device that the host does not wait for
    fetch    one copy back into the piece; the thread sleeps until it has arrived

The piece is made once because page-locking holds the driver's lock for milliseconds, which would otherwise
happen at the first step of every new size. And nothing is read from the device by `.item()` or `.tolist()`:
they wait in a loop that keeps a core busy for the whole step, while `fetch` sleeps on an event.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from tokenmux.core.sizes import round_up

STAGING_BYTES = 1 << 20
"""A batch of 64 rows with tables of 1,024 blocks needs half of it. A step that needs more allocates more."""

_ALIGNMENT = 16
"""In bytes. Every array of an upload starts on such a boundary."""


class Carrier(Protocol):
    """A device and its current stream, which carries out work in the order given."""

    def locked(self, n_bytes: int) -> torch.Tensor:
        """Page-locked host memory as `uint8`."""
        ...

    def empty(self, n_bytes: int) -> torch.Tensor:
        """Device memory as `uint8`."""
        ...

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Enqueue a copy on the stream. Returns at once."""
        ...

    def settle(self) -> None:
        """Sleep until the stream has done all its work."""
        ...


@dataclass(frozen=True, slots=True)
class CudaCarrier:
    """torch's current stream at each call."""

    device: torch.device

    def locked(self, n_bytes: int) -> torch.Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)

    def empty(self, n_bytes: int) -> torch.Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8, device=self.device)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def settle(self) -> None:
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        event.synchronize()


class HostCarrier:
    """No device: every copy is done when the call returns."""

    def locked(self, n_bytes: int) -> torch.Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8)

    def empty(self, n_bytes: int) -> torch.Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def settle(self) -> None: ...


class Staging:
    """The staging memory of one thread and one stream."""

    def __init__(self, carrier: Carrier, n_bytes: int = STAGING_BYTES) -> None:
        self._carrier = carrier
        self._piece = carrier.locked(n_bytes)
        self._used = 0

    @classmethod
    def on(cls, device: torch.device) -> "Staging":
        return cls(CudaCarrier(device) if device.type == "cuda" else HostCarrier())

    def upload(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, torch.Tensor]:
        """Copy the arrays to the device in one copy, without waiting for it."""
        places: dict[str, int] = {}
        size = 0
        for name, array in arrays.items():
            places[name] = size
            size += _aligned(array.nbytes)
        here = self._take(size)
        raw = here.numpy()
        for name, array in arrays.items():
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            raw[places[name] : places[name] + array.nbytes] = flat
        there = self._carrier.empty(size)
        self._carrier.copy(there, here)
        return {
            name: there[places[name] : places[name] + array.nbytes]
            .view(_TORCH_DTYPES[array.dtype])
            .view(array.shape)
            for name, array in arrays.items()
        }

    def fetch(self, there: torch.Tensor) -> torch.Tensor:
        """The contiguous tensor's values on the host, valid until the next call. All earlier work of the
        stream is done then."""
        here = self._take(there.nbytes)[: there.nbytes].view(there.dtype).view(there.shape)
        self._carrier.copy(here, there)
        self._settle()
        return here

    def _take(self, n_bytes: int) -> torch.Tensor:
        """A part of the piece that no copy in flight uses."""
        size = _aligned(n_bytes)
        if self._used + size > len(self._piece):
            self._settle()
            if size > len(self._piece):
                self._piece = self._carrier.locked(1 << (size - 1).bit_length())
        taken = self._piece[self._used : self._used + n_bytes]
        self._used += size
        return taken

    def _settle(self) -> None:
        self._carrier.settle()
        self._used = 0


def _aligned(n_bytes: int) -> int:
    return round_up(n_bytes, _ALIGNMENT)


_TORCH_DTYPES: Mapping[np.dtype[np.generic], torch.dtype] = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.uint8): torch.uint8,
}
