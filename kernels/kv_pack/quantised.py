"""Where int8 lies, in staging buffers and in records, and how far off it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tokenmux.kernels.layout import KVLayout


@dataclass(frozen=True, slots=True)
class Quantised:
    """Blocks as `codes` `[block, element]` int8 and `scales` `[block, row]` float32, one for `head_dim`
    codes.

    int8 and not fp8, at the same bytes: with a scale for each row int8 is off by at most 1/254 of the row's
    largest number, e4m3 by up to 1/16 of every number, and e4m3 needs sm_89.
    """

    codes: torch.Tensor
    scales: torch.Tensor

    @staticmethod
    def allocate(blocks: int, layout: KVLayout, *, pinned: bool = False, device: str = "cpu") -> Quantised:
        rows = layout.block_elements // layout.head_dim
        return Quantised(
            codes=torch.empty(
                blocks, layout.block_elements, dtype=torch.int8, device=device, pin_memory=pinned
            ),
            scales=torch.empty(blocks, rows, dtype=torch.float32, device=device, pin_memory=pinned),
        )


def record_bytes(layout: KVLayout) -> int:
    """Of a block in int8 where codes and scales lie together: its codes, then its scales."""
    return layout.block_elements // layout.head_dim * (layout.head_dim + 4)


def int8_error_bound(largest: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The most that a number may change by way of int8, in a row whose largest magnitude is `largest`.

    Half a step of `largest / 127`, and the rounding of the result to `dtype` (half an ulp of `largest`); the
    factor covers the roundings of float32 in between.
    """
    step = largest / 127
    return (step / 2 + largest * torch.finfo(dtype).eps / 2) * (1 + 1e-4) + torch.finfo(dtype).tiny
