"""What `kv_append` computes, in plain torch, and the slots that every layer of a step shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tokenmux.kernels.layout import KVLayout


def slots(
    table: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, *, layout: KVLayout
) -> torch.Tensor:
    """For each token, the offset of its key in head 0 of layer 0: int64, in elements from the start of the
    arena.

    `rows[token]` is the token's row of `table`, `positions[token]` its place in the sequence. Computed once
    per step and used by all layers, since layer, half and head only add constants.
    """
    block = table[rows, positions // layout.block_size]
    return block + positions % layout.block_size * layout.head_dim


def kv_append(
    key: torch.Tensor,
    value: torch.Tensor,
    arena: torch.Tensor,
    slots: torch.Tensor,
    count: torch.Tensor,
    *,
    layout: KVLayout,
    layer: int,
) -> None:
    """Write `key` and `value` `[token, kv head, dim]` of the first `count` tokens to their slots in `arena`.

    `count` int32 `[1]` is on the device, so that a captured graph of a padded batch writes only real tokens.
    """
    used = int(count)
    start = layer * layout.layer_stride
    head = torch.arange(layout.kv_heads, device=arena.device) * layout.head_stride
    dim = torch.arange(layout.head_dim, device=arena.device)
    place = slots[:used, None, None] + start + head[:, None] + dim
    arena[place] = key[:used]
    arena[place + layout.value_stride] = value[:used]
