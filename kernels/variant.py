"""One compiled form of a kernel: what the compiler is told, apart from what varies by launch.

The launch functions and the ahead-of-time compiler both go through a `Variant`, so that what was compiled in
advance is exactly what a launch looks up in Triton's cache. Everything that Triton would specialise on by
value is either a constant here or excluded from specialisation in the kernel's decorator, so that the form
depends on the model and the device, never on the step.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

POINTER_ALIGNMENT = 16
"""Bytes. Tensors that are read or written in vectors start on such a boundary; a launch checks it."""

Kind = torch.dtype | type[int] | type[float]
"""Of a launch argument: a tensor's dtype, or int or float for a number."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel with the kinds of its launch arguments and the values of its compile-time constants.

    An optional tensor that is absent in this form stands among the constants, as None. `unaligned` names the
    tensors read one number at a time, which may start anywhere (the kernel's decorator names the same ones).
    """

    kernel: Any
    kinds: Mapping[str, Kind]
    constants: Mapping[str, Any]
    unaligned: tuple[str, ...]
    warps: int
    stages: int = 1

    @property
    def options(self) -> dict[str, Any]:
        # enable_fp_fusion is explicit because Triton changed its default (and says so in a warning).
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}

    def launch(self, grid: tuple[int, ...], **arguments: Any) -> None:
        """Starts the kernel on the current stream; `ValueError` for a tensor that breaks the alignment."""
        for name, kind in self.kinds.items():
            aligned = isinstance(kind, torch.dtype) and name not in self.unaligned
            if aligned and arguments[name].data_ptr() % POINTER_ALIGNMENT:
                raise ValueError(f"{name} must start on a {POINTER_ALIGNMENT}-byte boundary")
        if all(grid):
            self.kernel[grid](**arguments, **self.constants, **self.options)

    def compile(self, capability: int) -> Any:
        """Compiles for a compute capability (major * 10 + minor) without a device, into Triton's cache.

        Goes through Triton's own launch path up to where a device would be needed: how that path spells out a
        specialisation differs between versions, and a key that is spelled otherwise is not found. While it
        compiles no other thread may launch, since the driver is the process's.
        """
        samples = {
            name: torch.empty(0, dtype=kind) if isinstance(kind, torch.dtype) else kind(2)
            for name, kind in self.kinds.items()
        }
        with _target_only(capability) as target:
            try:
                return self.kernel.warmup(**samples, **self.constants, **self.options, grid=(1,))
            finally:
                self.kernel.device_caches.pop(target, None)


class _TargetOnly:
    """As much of a driver as compiling needs. It is its own device, so that nothing compiled for it is
    kept."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> _TargetOnly:
        return self

    def get_current_stream(self, device: object) -> int:
        return 0


@contextmanager
def _target_only(capability: int) -> Iterator[_TargetOnly]:
    """Makes Triton compile for `capability`; the driver that was active (or none, yet) is active again
    afterwards."""
    before = driver._active  # `driver.active` would create one, which fails where there is no device
    target = _TargetOnly(capability)
    driver.set_active(target)
    try:
        yield target
    finally:
        driver._active = before
