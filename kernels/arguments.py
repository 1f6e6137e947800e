"""Checks and conversions of launch arguments that several kernels share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NO_WINDOW = 2**31 - 1
"""Stands for no sliding window: longer than any sequence, so that one compiled form serves both cases."""


def sixteenths(stride: int) -> int:
    """A stride in units of 16 elements.

    Strides are passed in this unit so that the compiler knows that every row is aligned for 16-byte loads,
    without one compiled form for each stride that a fused projection may have.
    """
    if stride % 16:
        raise ValueError(f"strides of rows and heads are multiples of 16 elements, got {stride}")
    return stride // 16


def last_dim_contiguous(**tensors: torch.Tensor) -> None:
    """Raise `ValueError` unless the elements of each tensor's last dimension are adjacent."""
    for name, tensor in tensors.items():
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(
                f"the last dimension of {name} must be contiguous, got strides {tensor.stride()}"
            )
