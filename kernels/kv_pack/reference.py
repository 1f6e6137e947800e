"""What `kv_page`, `kv_pack` and `kv_unpack` compute, in plain torch, as they are and through int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenmux.kernels.kv_pack.quantised import Quantised, record_bytes

if TYPE_CHECKING:
    from tokenmux.kernels.layout import KVLayout

SMALLEST_SCALE = 1e-30
"""Keeps a row of zeros (or of numbers that vanish in float32) from dividing by zero."""


def kv_page(target: torch.Tensor, source: torch.Tensor, offsets: torch.Tensor, *, block_bytes: int) -> None:
    """Copies `block_bytes` of `source` at `offsets[1, i]` to `target` at `offsets[0, i]`: `uint8` tensors,
    offsets in bytes."""
    for there, here in offsets.T.tolist():
        target[there : there + block_bytes] = source[here : here + block_bytes]


def kv_pack(arena: torch.Tensor, offsets: torch.Tensor, staging: torch.Tensor, *, layout: KVLayout) -> None:
    """Copies the block at `offsets[i]` to row i of `staging` `[block, element]`, bit for bit."""
    for row, offset in zip(staging, offsets.tolist(), strict=True):
        row.copy_(layout.block(arena, offset).flatten())


def kv_unpack(arena: torch.Tensor, offsets: torch.Tensor, staging: torch.Tensor, *, layout: KVLayout) -> None:
    """Copies row i of `staging` to the block at `offsets[i]`, bit for bit."""
    for row, offset in zip(staging, offsets.tolist(), strict=True):
        layout.block(arena, offset).copy_(row.view(layout.layers, 2, layout.kv_heads, layout.block_size, -1))


def kv_pack_int8(arena: torch.Tensor, offsets: torch.Tensor, staging: Quantised, *, layout: KVLayout) -> None:
    """Packs blocks as int8 with one float32 scale for every row of `head_dim` numbers.

    A row is one token's key (or value) of one layer and head: `scale = max |x| / 127`, `code = floor(x /
    scale + 1/2)`. Rows are independent, so that a token not written yet (anything, NaN included) harms no
    token that is.
    """
    for place, offset in enumerate(offsets.tolist()):
        rows = layout.block(arena, offset).reshape(-1, layout.head_dim).float()
        scales = (rows.abs().amax(dim=1) / 127).clamp(min=SMALLEST_SCALE)
        staging.scales[place] = scales
        codes = torch.floor(rows / scales[:, None] + 0.5).clamp(-127, 127)
        staging.codes[place] = codes.nan_to_num().to(torch.int8).flatten()


def kv_unpack_int8(
    arena: torch.Tensor, offsets: torch.Tensor, staging: Quantised, *, layout: KVLayout
) -> None:
    """Writes `code * scale`, rounded to the arena's dtype, to the block at `offsets[i]`."""
    for place, offset in enumerate(offsets.tolist()):
        rows = staging.codes[place].view(-1, layout.head_dim).float() * staging.scales[place][:, None]
        layout.block(arena, offset).copy_(rows.view(layout.layers, 2, layout.kv_heads, layout.block_size, -1))


def kv_page_out_int8(
    host: torch.Tensor, arena: torch.Tensor, offsets: torch.Tensor, *, layout: KVLayout
) -> None:
    """`kv_pack_int8`, to a record for each block: codes, then scales, at `offsets[0, i]` bytes of `host`
    (`uint8`)."""
    for record, offset in offsets.T.tolist():
        quantised = Quantised.allocate(1, layout)
        kv_pack_int8(arena, torch.tensor([offset]), quantised, layout=layout)
        whole = torch.cat((quantised.codes.view(torch.uint8)[0], quantised.scales.view(torch.uint8)[0]))
        host[record : record + len(whole)] = whole


def kv_page_in_int8(
    arena: torch.Tensor, host: torch.Tensor, offsets: torch.Tensor, *, layout: KVLayout
) -> None:
    """`kv_unpack_int8`, from the records at `offsets[1, i]` bytes of `host` to the blocks at `offsets[0,
    i]`."""
    for offset, record in offsets.T.tolist():
        whole = host[record : record + record_bytes(layout)].clone()
        codes, scales = whole[: layout.block_elements], whole[layout.block_elements :]
        quantised = Quantised(codes.view(torch.int8)[None], scales.view(torch.float32)[None])
        kv_unpack_int8(arena, torch.tensor([offset]), quantised, layout=layout)
