"""The rotary embedding of a step as a value, shared by the reference and the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotates keys on their way into the blocks, and `query` into `rotated`.

    `cosine` and `sine` are contiguous float32 `[token, pair]`, one angle for each rotated pair of dimensions:
    in float32 because bfloat16 has three digits and the angle of position 10,000 needs more. Pairs are (i, i
    + pairs), or (2i, 2i + 1) where `interleaved`. Dimensions past 2 * pairs are copied as they are.

    `query` `[token, head, dim]` may be any view with contiguous dims; `rotated` is contiguous and may not
    overlap it.
    """

    cosine: torch.Tensor
    sine: torch.Tensor
    query: torch.Tensor
    rotated: torch.Tensor
    interleaved: bool = False

    @property
    def pairs(self) -> int:
        return self.cosine.shape[1]
