"""Host side of `paged_decode`: its compiled forms, its workspace and its launch. No host synchronisation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from tokenmux.kernels.arguments import NO_WINDOW, last_dim_contiguous, sixteenths
from tokenmux.kernels.kinds import MODEL, SINKS
from tokenmux.kernels.paged_decode import kernel
from tokenmux.kernels.tiles import DecodeTile, group_tile, padded
from tokenmux.kernels.variant import Variant

if TYPE_CHECKING:
    from tokenmux.kernels.layout import KVLayout

SPLIT_TILE = 16
"""Splits that the merge loads at a time: 16 independent rows hide the latency of single reads."""


@dataclass(frozen=True, slots=True)
class DecodeWorkspace:
    """Memory for the results of splits. Allocated once for the largest step and shared by all layers and
    models."""

    partials: torch.Tensor
    log_sums: torch.Tensor

    @staticmethod
    def allocate(elements: int, head_dim: int, device: torch.device | str) -> DecodeWorkspace:
        """Memory for `elements` = rows * query heads * splits partial results."""
        return DecodeWorkspace(
            partials=torch.empty(elements * head_dim, dtype=torch.float32, device=device),
            log_sums=torch.empty(elements, dtype=torch.float32, device=device),
        )


def splits(table: torch.Tensor, layout: KVLayout, tile: DecodeTile) -> int:
    """Number of splits that a table of this width can need. Narrow the table to the bucket's longest row
    first."""
    return -(-table.shape[1] * layout.block_size // tile.split)


@cache
def split_variant(
    dtype: torch.dtype, head_dim: int, block_size: int, group: int, tile: DecodeTile, softcap: bool
) -> Variant:
    """The compiled form of the split pass for `group` query heads per KV head."""
    rows = group_tile(group)
    wide = rows * padded(head_dim) > 32 * 128
    constants = {
        "HEAD_DIM": head_dim,
        "DIM_TILE": padded(head_dim),
        "BLOCK_SIZE": block_size,
        "GROUP_TILE": rows,
        "TOKEN_TILE": tile.tokens,
        "SPLIT": tile.split,
        "SOFTCAP": softcap,
    }
    # Large groups have rows * dim accumulators: twice the threads keep them in registers.
    warps = tile.warps * 2 if wide else tile.warps
    return kernel.attend_split.variant({MODEL: dtype}, constants, warps=warps, stages=tile.stages)


@cache
def merge_variant(
    dtype: torch.dtype, head_dim: int, tile: DecodeTile, sinks: torch.dtype | None = None
) -> Variant:
    """The compiled form of the merge pass; `sinks` is the dtype of the sinks, if any."""
    constants = {
        "HEAD_DIM": head_dim,
        "DIM_TILE": padded(head_dim),
        "SPLIT": tile.split,
        "SPLIT_TILE": SPLIT_TILE,
    }
    return kernel.merge_splits.variant({MODEL: dtype, SINKS: sinks}, constants, warps=2)


def paged_decode(
    query: torch.Tensor,
    arena: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    out: torch.Tensor,
    workspace: DecodeWorkspace,
    *,
    layout: KVLayout,
    layer: int,
    tile: DecodeTile,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> None:
    """Write the attention of `query` `[row, head, dim]` over its blocks into the contiguous `out`.

    `table` `[row, block]` int64 and `lengths` `[row]` int32 are read on the device, when the kernel runs. The
    result is defined in `reference.py`. Raises `ValueError` for strides, sizes or a workspace that do not
    fit.
    """
    rows, heads, head_dim = query.shape
    if heads % layout.kv_heads or head_dim != layout.head_dim:
        raise ValueError(f"queries {tuple(query.shape)} do not fit {layout}")
    if not out.is_contiguous() or out.shape != query.shape:
        raise ValueError("out is contiguous and has the shape of query")
    last_dim_contiguous(query=query, table=table)
    group = heads // layout.kv_heads
    pieces = splits(table, layout, tile)
    if workspace.log_sums.numel() < rows * heads * pieces:
        raise ValueError(
            f"the workspace holds {workspace.log_sums.numel()} partials, need {rows * heads * pieces}"
        )
    if workspace.partials.numel() < rows * heads * pieces * head_dim:
        raise ValueError(f"the workspace was made for heads smaller than {head_dim}")

    visible = NO_WINDOW if window is None else window
    split_variant(query.dtype, head_dim, layout.block_size, group, tile, softcap is not None).launch(
        (rows, layout.kv_heads, pieces),
        query=query,
        arena=arena,
        table=table,
        lengths=lengths,
        partials=workspace.partials,
        log_sums=workspace.log_sums,
        query_row_16=sixteenths(query.stride(0)),
        query_head_16=sixteenths(query.stride(1)),
        table_row=table.stride(0),
        layer=layer,
        group=group,
        window=visible,
        scale=scale,
        softcap=1.0 if softcap is None else softcap,
    )
    optional = {} if sinks is None else {"sinks": sinks}
    merge_variant(query.dtype, head_dim, tile, None if sinks is None else sinks.dtype).launch(
        (rows, heads, 1),
        partials=workspace.partials,
        log_sums=workspace.log_sums,
        lengths=lengths,
        out=out,
        splits=pieces,
        window=visible,
        **optional,
    )
