"""The size of a block in int8, and the error of its numbers.

int8 and not fp8, at the same bytes: with a scale for each row int8 is off by at most 1/254 of the row's
largest number, e4m3 by up to 1/16 of every number, and e4m3 needs sm_89.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tokenmux.kernels.layout import KVLayout


def record_bytes(layout: KVLayout) -> int:
    """Bytes of a block's record: its codes (int8), then a scale (float32) for each row of `head_dim`
    codes."""
    return layout.block_elements // layout.head_dim * (layout.head_dim + 4)


def int8_error_bound(largest: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The largest change of a number through int8, in a row whose largest magnitude is `largest`.

    Half a step of `largest / 127`, and the rounding of the result to `dtype` (half an ulp of `largest`); the
    factor covers the float32 roundings in between.
    """
    step = largest / 127
    return (step / 2 + largest * torch.finfo(dtype).eps / 2) * (1 + 1e-4) + torch.finfo(dtype).tiny
