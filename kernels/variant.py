"""A kernel, and one compiled form of it: what the compiler is told, apart from what varies by launch.

The launch functions and the ahead-of-time compiler both use a `Variant`, so that what was compiled in advance
is exactly what a launch looks up in Triton's cache. Everything that Triton would specialise on by value is
either a constant here or, by its kind, excluded from specialisation, so that the form depends on the model
and the device, never on the step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
import triton
from triton.runtime.driver import driver

from tokenmux.kernels.absent import absent_device
from tokenmux.kernels.kinds import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

POINTER_ALIGNMENT = 16
"""In bytes. Tensors that are read in vectors start on such a boundary; a launch checks it."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """Device code and its parameters in order, with the kind of each that a launch passes."""

    device_code: Any
    parameters: tuple[str, ...]
    kinds: Mapping[str, Kind]

    def variant(
        self,
        dtypes: Mapping[Kind, torch.dtype | None],
        constants: Mapping[str, Any],
        *,
        warps: int,
        stages: int = 1,
    ) -> Variant:
        """The form with these compile-time `constants`.

        `dtypes` are those of the kinds without a fixed dtype; None for an optional tensor that is absent.
        Raises `TypeError` unless each parameter is an argument of a known dtype or a constant.
        """
        arguments: dict[str, torch.dtype | type[int | float]] = {}
        absent: dict[str, None] = {}
        for name, kind in self.kinds.items():
            if (dtype := kind.dtype or dtypes[kind]) is None:
                absent[name] = None
            else:
                arguments[name] = dtype
        if sorted(self.parameters) != sorted([*self.kinds, *constants]):
            raise TypeError(f"parameters {self.parameters}, but arguments {[*self.kinds]} and {[*constants]}")
        return Variant(self, arguments, {**absent, **constants}, warps, stages)


def kernel(function: Callable[..., None]) -> Kernel:
    """Make a kernel from device code whose parameters are annotated with their kind, or as `tl.constexpr`."""
    annotations = function.__annotations__
    kinds = {name: kind for name, kind in annotations.items() if isinstance(kind, Kind)}
    decorate = triton.jit(
        do_not_specialize=[name for name, kind in kinds.items() if kind.dtype is int],
        do_not_specialize_on_alignment=[name for name, kind in kinds.items() if not kind.in_vectors],
    )
    return Kernel(decorate(function), tuple(annotations), kinds)


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """A kernel with the dtypes of its launch arguments (`int` or `float` for a number) and its constants.

    An optional tensor that is absent in this form is among the constants, as None.
    """

    kernel: Kernel
    arguments: Mapping[str, torch.dtype | type[int | float]]
    constants: Mapping[str, Any]
    warps: int
    stages: int = 1
    _in_vectors: tuple[str, ...] = field(init=False, repr=False)
    _in_order: Callable[[Mapping[str, Any]], tuple[Any, ...]] = field(init=False, repr=False)
    _loaded: dict[object, Any] = field(init=False, repr=False, default_factory=dict)
    """The compiled form on each device where it was launched, by Triton's name for the device."""

    def __post_init__(self) -> None:
        kinds = self.kernel.kinds
        object.__setattr__(
            self, "_in_vectors", tuple(name for name in self.arguments if kinds[name].in_vectors)
        )
        object.__setattr__(self, "_in_order", itemgetter(*self.kernel.parameters))

    @property
    def identity(self) -> Hashable:
        """Equal for two variants that are the same compiled form."""
        constants = tuple(self.constants.items())
        return id(self.kernel), *self.arguments.items(), constants, self.warps, self.stages

    @property
    def options(self) -> dict[str, Any]:
        # enable_fp_fusion is explicit because Triton changed its default (with a warning).
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}

    def launch(self, grid: tuple[int, int, int], **arguments: Any) -> None:
        """Start the kernel on the current stream. Raises `ValueError` for a tensor that breaks the alignment.

        Triton looks a form up by every argument, at each launch (20 us of Python). A variant is one form, so
        after the first launch on a device it is started directly.
        """
        for name in self._in_vectors:
            if arguments[name].data_ptr() % POINTER_ALIGNMENT:
                raise ValueError(f"{name} must start on a {POINTER_ALIGNMENT}-byte boundary")
        if 0 in grid:
            return
        code = self.kernel.device_code
        if not isinstance(code, triton.JITFunction):  # Triton's interpreter
            code[grid](**arguments, **self.constants, **self.options)
            return
        device = driver.active.get_current_device()
        loaded = self._loaded.get(device)
        if loaded is None:
            self._loaded[device] = code[grid](**arguments, **self.constants, **self.options)
        else:
            loaded[grid](*self._in_order({**arguments, **self.constants}))

    def compile(self, capability: int) -> Any:
        """Compile for a compute capability (major * 10 + minor) without a device, into Triton's cache.

        Follows Triton's own launch path up to the point where a device would be needed: how that path writes
        a specialisation differs between versions, and a key written differently is not found. While it
        compiles no other thread may launch, since the driver belongs to the process.
        """
        samples = {
            name: torch.empty(0, dtype=dtype) if isinstance(dtype, torch.dtype) else dtype(2)
            for name, dtype in self.arguments.items()
        }
        code = self.kernel.device_code
        with absent_device(capability) as device:
            try:
                return code.warmup(**samples, **self.constants, **self.options, grid=(1,))
            finally:
                code.device_caches.pop(device, None)
