"""What paging computes, in plain torch: blocks unchanged, and in int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenmux.kernels.kv_page.quantised import record_bytes

if TYPE_CHECKING:
    from tokenmux.kernels.layout import KVLayout

SMALLEST_SCALE = 1e-30
"""Prevents a division by zero for a row of zeros (or of numbers that vanish in float32)."""


def kv_page(target: torch.Tensor, source: torch.Tensor, offsets: torch.Tensor, *, block_bytes: int) -> None:
    """Copy `block_bytes` of `source` at `offsets[1, i]` to `target` at `offsets[0, i]`: `uint8` tensors,
    in bytes."""
    for there, here in offsets.T.tolist():
        target[there : there + block_bytes] = source[here : here + block_bytes]


def kv_page_out_int8(
    host: torch.Tensor, arena: torch.Tensor, offsets: torch.Tensor, *, layout: KVLayout
) -> None:
    """Write the block at `offsets[1, i]` of `arena` as a record at `offsets[0, i]` bytes of `host` (`uint8`).

    A row is one token's key (or value) of one layer and head: `scale = max |x| / 127`, `code = floor(x /
    scale + 1/2)`. Rows are independent, so that a token not written yet (any bits, including NaN) does not
    harm one that is. A record is the codes of all rows, then their scales.
    """
    for record, offset in offsets.T.tolist():
        rows = layout.block(arena, offset).reshape(-1, layout.head_dim).float()
        scales = (rows.abs().amax(dim=1) / 127).clamp(min=SMALLEST_SCALE)
        codes = torch.floor(rows / scales[:, None] + 0.5).clamp(-127, 127).nan_to_num().to(torch.int8)
        whole = torch.cat((codes.view(torch.uint8).flatten(), scales.view(torch.uint8)))
        host[record : record + len(whole)] = whole


def kv_page_in_int8(
    arena: torch.Tensor, host: torch.Tensor, offsets: torch.Tensor, *, layout: KVLayout
) -> None:
    """Write `code * scale`, rounded to the arena's dtype, to the block at `offsets[0, i]`, from the record at
    `offsets[1, i]`."""
    for offset, record in offsets.T.tolist():
        whole = host[record : record + record_bytes(layout)].clone()
        codes = whole[: layout.block_elements].view(torch.int8).view(-1, layout.head_dim)
        scales = whole[layout.block_elements :].view(torch.float32)
        rows = codes.float() * scales[:, None]
        layout.block(arena, offset).copy_(rows.view(layout.layers, 2, layout.kv_heads, layout.block_size, -1))
