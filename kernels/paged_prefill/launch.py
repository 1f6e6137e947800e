"""Host side of `paged_prefill`: its compiled forms and its launch. No host synchronisation."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from tokenmux.kernels.arguments import NO_WINDOW, last_dim_contiguous, sixteenths
from tokenmux.kernels.kinds import MODEL, SINKS
from tokenmux.kernels.paged_prefill import kernel
from tokenmux.kernels.tiles import padded
from tokenmux.kernels.variant import Variant

if TYPE_CHECKING:
    import torch

    from tokenmux.kernels.layout import KVLayout
    from tokenmux.kernels.tiles import PrefillTile


@cache
def variant(
    dtype: torch.dtype,
    head_dim: int,
    block_size: int,
    tile: PrefillTile,
    *,
    softcap: bool = False,
    sinks: torch.dtype | None = None,
) -> Variant:
    """The compiled form; `sinks` is the dtype of the sinks, if any."""
    constants = {
        "HEAD_DIM": head_dim,
        "DIM_TILE": padded(head_dim),
        "BLOCK_SIZE": block_size,
        "QUERY_TILE": tile.queries,
        "TOKEN_TILE": tile.tokens,
        "SOFTCAP": softcap,
    }
    dtypes = {MODEL: dtype, SINKS: sinks}
    return kernel.attend_chunk.variant(dtypes, constants, warps=tile.warps, stages=tile.stages)


def paged_prefill(
    query: torch.Tensor,
    arena: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor,
    out: torch.Tensor,
    *,
    layout: KVLayout,
    layer: int,
    longest_chunk: int,
    tile: PrefillTile,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> None:
    """Write the attention of `query` `[token, head, dim]` into the contiguous `out`.

    `starts` `[row + 1]` int32 bounds each row's new tokens; `longest_chunk` is the host's bound on their
    number. The result is defined in `reference.py`. Raises `ValueError` for strides and sizes that do not
    fit.
    """
    _, heads, head_dim = query.shape
    if heads % layout.kv_heads or head_dim != layout.head_dim:
        raise ValueError(f"queries {tuple(query.shape)} do not fit {layout}")
    if not out.is_contiguous() or out.shape != query.shape:
        raise ValueError("out is contiguous and has the shape of query")
    last_dim_contiguous(query=query, table=table)
    optional = {} if sinks is None else {"sinks": sinks}
    variant(
        query.dtype,
        head_dim,
        layout.block_size,
        tile,
        softcap=softcap is not None,
        sinks=None if sinks is None else sinks.dtype,
    ).launch(
        # A chunk that begins at the end of a query tile touches one more tile.
        ((longest_chunk + 2 * tile.queries - 2) // tile.queries, heads, table.shape[0]),
        query=query,
        arena=arena,
        table=table,
        lengths=lengths,
        starts=starts,
        out=out,
        query_token_16=sixteenths(query.stride(0)),
        query_head_16=sixteenths(query.stride(1)),
        table_row=table.stride(0),
        layer=layer,
        kv_heads=layout.kv_heads,
        group=heads // layout.kv_heads,
        window=NO_WINDOW if window is None else window,
        scale=scale,
        softcap=1.0 if softcap is None else softcap,
        **optional,
    )
