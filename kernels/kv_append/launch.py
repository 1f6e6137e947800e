"""Host side of `kv_append`: its compiled forms and its launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tokenmux.kernels.arguments import last_dim_contiguous, sixteenths
from tokenmux.kernels.kv_append import kernel
from tokenmux.kernels.tiles import padded
from tokenmux.kernels.variant import Kind, Variant

if TYPE_CHECKING:
    from tokenmux.kernels.kv_append.rotary import Rotary
    from tokenmux.kernels.layout import KVLayout

ELEMENTS = 2048
"""Elements of a tile: two 16-byte vectors a thread. At 128 dims a step of up to 16 rows is one program a
head."""


def token_tile(head_dim: int) -> int:
    return ELEMENTS // padded(head_dim)


def variant(
    dtype: torch.dtype, head_dim: int, block_size: int, pairs: int = 0, *, interleaved: bool = False
) -> Variant:
    """The compiled form for `pairs` rotated pairs of dimensions (0: no rotary embedding)."""
    kinds: dict[str, Kind] = {
        "key": dtype,
        "value": dtype,
        "arena": dtype,
        "slots": torch.int64,
        "count": torch.int32,
        "key_token_16": int,
        "key_head_16": int,
        "value_token_16": int,
        "value_head_16": int,
        "query_token_16": int,
        "query_head_16": int,
        "kv_heads": int,
        "query_heads": int,
        "layer": int,
    }
    constants: dict[str, Any] = {
        "HEAD_DIM": head_dim,
        "DIM_TILE": padded(head_dim),
        "BLOCK_SIZE": block_size,
        "TOKEN_TILE": token_tile(head_dim),
        "PAIRS": pairs,
        "PAIR_TILE": padded(max(pairs, 1)),
        "INTERLEAVED": interleaved,
    }
    if pairs:
        kinds |= {
            "query": dtype,
            "rotated": dtype,
            "cosine": torch.float32,
            "sine": torch.float32,
        }
    else:
        constants |= {"query": None, "rotated": None, "cosine": None, "sine": None}
    return Variant(kernel.append, kinds, constants, unaligned=kernel.UNALIGNED, warps=4)


def kv_append(
    key: torch.Tensor,
    value: torch.Tensor,
    arena: torch.Tensor,
    slots: torch.Tensor,
    count: torch.Tensor,
    *,
    layout: KVLayout,
    layer: int,
    rotary: Rotary | None = None,
) -> None:
    """Writes the keys and values of a step's tokens into their blocks; see `reference.py` for the meaning.

    `key` and `value` `[token, kv head, dim]` may be views into one fused projection. Raises `ValueError` for
    shapes and strides that do not fit.
    """
    tokens, kv_heads, head_dim = key.shape
    if (kv_heads, head_dim) != (layout.kv_heads, layout.head_dim) or value.shape != key.shape:
        raise ValueError(f"keys {tuple(key.shape)} and values {tuple(value.shape)} do not fit {layout}")
    last_dim_contiguous(key=key, value=value)
    optional: dict[str, Any] = {}
    query_heads = query_token = query_head = 0
    if rotary is not None:
        last_dim_contiguous(query=rotary.query)
        if not (
            rotary.cosine.is_contiguous() and rotary.sine.is_contiguous() and rotary.rotated.is_contiguous()
        ):
            raise ValueError("cosine, sine and the rotated queries are contiguous")
        if rotary.pairs % 8 or 2 * rotary.pairs > head_dim:
            raise ValueError(
                f"rotated pairs are a multiple of 8 that fits {head_dim} dims, got {rotary.pairs}"
            )
        query_heads = rotary.query.shape[1]
        query_token, query_head = sixteenths(rotary.query.stride(0)), sixteenths(rotary.query.stride(1))
        optional = {
            "query": rotary.query,
            "rotated": rotary.rotated,
            "cosine": rotary.cosine,
            "sine": rotary.sine,
        }
    variant(
        key.dtype,
        head_dim,
        layout.block_size,
        0 if rotary is None else rotary.pairs,
        interleaved=rotary is not None and rotary.interleaved,
    ).launch(
        (-(-tokens // token_tile(head_dim)), kv_heads + query_heads),
        key=key,
        value=value,
        arena=arena,
        slots=slots,
        count=count,
        key_token_16=sixteenths(key.stride(0)),
        key_head_16=sixteenths(key.stride(1)),
        value_token_16=sixteenths(value.stride(0)),
        value_head_16=sixteenths(value.stride(1)),
        query_token_16=query_token,
        query_head_16=query_head,
        kv_heads=kv_heads,
        query_heads=query_heads,
        layer=layer,
        **optional,
    )
