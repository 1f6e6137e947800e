"""Host side of `kv_append`: its compiled forms and its launch."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from tokenmux.kernels.arguments import last_dim_contiguous, sixteenths
from tokenmux.kernels.kinds import MODEL
from tokenmux.kernels.kv_append import kernel
from tokenmux.kernels.tiles import padded
from tokenmux.kernels.variant import Variant

if TYPE_CHECKING:
    import torch

    from tokenmux.kernels.layout import KVLayout

TILE_NUMBERS = 2048
"""Numbers in a tile: two 16-byte vectors per thread. At 128 dims a step of up to 16 rows is one program per
head."""


def token_tile(head_dim: int) -> int:
    """Tokens in a tile."""
    return TILE_NUMBERS // padded(head_dim)


@cache
def variant(dtype: torch.dtype, head_dim: int, block_size: int) -> Variant:
    """The compiled form for blocks of `block_size` tokens."""
    constants = {
        "HEAD_DIM": head_dim,
        "DIM_TILE": padded(head_dim),
        "BLOCK_SIZE": block_size,
        "TOKEN_TILE": token_tile(head_dim),
    }
    return kernel.append.variant({MODEL: dtype}, constants, warps=4)


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
    """Write the keys and values of a step's tokens into their blocks, as defined in `reference.py`.

    `key` and `value` `[token, kv head, dim]` may be views into one fused projection. Raises `ValueError` for
    shapes and strides that do not fit.
    """
    tokens, kv_heads, head_dim = key.shape
    if (kv_heads, head_dim) != (layout.kv_heads, layout.head_dim) or value.shape != key.shape:
        raise ValueError(f"keys {tuple(key.shape)} and values {tuple(value.shape)} do not fit {layout}")
    last_dim_contiguous(key=key, value=value)
    key_token, key_head, _ = key.stride()
    value_token, value_head, _ = value.stride()
    variant(key.dtype, head_dim, layout.block_size).launch(
        (-(-tokens // token_tile(head_dim)), kv_heads, 1),
        key=key,
        value=value,
        arena=arena,
        slots=slots,
        count=count,
        key_token_16=sixteenths(key_token),
        key_head_16=sixteenths(key_head),
        value_token_16=sixteenths(value_token),
        value_head_16=sixteenths(value_head),
        layer=layer,
    )
