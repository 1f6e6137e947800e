"""Host side of `sample`: its workspace, its compiled forms and its four launches. No host synchronisation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from tokenmux.kernels.arguments import last_dim_contiguous
from tokenmux.kernels.kinds import LOGITS
from tokenmux.kernels.sample import kernel
from tokenmux.kernels.tiles import SampleTile, padded
from tokenmux.kernels.variant import Variant

if TYPE_CHECKING:
    from tokenmux.kernels.sample.parameters import Sampled, SamplingRows

CANDIDATES = 2048
"""Capacity of `finish` for the tiles' n largest, in registers: 64 tiles (a vocabulary of 262,144) of 32."""

_KEY_BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}
"""Leading bits, as float32, that distinguish the keys of a dtype: sign, exponent and mantissa, rounded up
to an even number."""


@dataclass(frozen=True, slots=True)
class SampleWorkspace:
    """Intermediate results between the kernels of one draw: a number per tile of vocabulary, or per row."""

    peak: torch.Tensor
    total: torch.Tensor
    values: torch.Tensor
    tokens: torch.Tensor
    arrival: torch.Tensor
    winner: torch.Tensor
    peaks: torch.Tensor
    thresholds: torch.Tensor

    @staticmethod
    def allocate(rows: int, vocabulary: int, top_n: int, tile: SampleTile, device: str) -> SampleWorkspace:
        slots = rows * tiles(vocabulary, tile)
        return SampleWorkspace(
            peak=torch.empty(slots, dtype=torch.float32, device=device),
            total=torch.empty(slots, dtype=torch.float32, device=device),
            values=torch.empty(slots * top_n, dtype=torch.float32, device=device),
            tokens=torch.empty(slots * top_n, dtype=torch.int32, device=device),
            arrival=torch.empty(slots, dtype=torch.float32, device=device),
            winner=torch.empty(slots, dtype=torch.int32, device=device),
            peaks=torch.empty(rows, dtype=torch.float32, device=device),
            thresholds=torch.empty(rows, dtype=torch.int64, device=device),
        )


def tiles(vocabulary: int, tile: SampleTile) -> int:
    """Number of tiles in a row."""
    return -(-vocabulary // tile.vocabulary)


def variants(dtype: torch.dtype, vocabulary: int, row_stride: int, tile: SampleTile) -> dict[str, Variant]:
    """The compiled forms of the four kernels, by name."""
    aligned = row_stride % 16 == 0 and vocabulary % 16 == 0
    return _variants(dtype, padded(tiles(vocabulary, tile)), tile, aligned)


@cache
def _variants(dtype: torch.dtype, padded_tiles: int, tile: SampleTile, aligned: bool) -> dict[str, Variant]:
    dtypes = {LOGITS: dtype}
    by_tile = {"TILE": tile.vocabulary, "ALIGNED": aligned}
    search = {
        "TILE": tile.search,
        "TILES_PADDED": padded_tiles,
        "KEY_BITS": _KEY_BITS[dtype],
        "ALIGNED": aligned,
    }
    listed = {"TILES_PADDED": padded_tiles, "CANDIDATES": CANDIDATES}
    return {
        "summarise": kernel.summarise.variant(dtypes, by_tile, warps=tile.warps),
        "threshold": kernel.threshold.variant(dtypes, search, warps=tile.search_warps),
        "draw": kernel.draw.variant(dtypes, by_tile, warps=tile.warps),
        "finish": kernel.finish.variant(dtypes, listed, warps=tile.warps),
    }


def sample(
    logits: torch.Tensor,
    sampling: SamplingRows,
    out: Sampled,
    workspace: SampleWorkspace,
    *,
    tile: SampleTile,
) -> None:
    """Draw a token for each row of `logits` `[row, vocabulary]` into `out`, as defined in `reference.py`.

    The number of likeliest tokens is the width of `out.top_tokens`. Raises `ValueError` for a workspace that
    is too small or more candidates than fit.
    """
    rows, vocabulary = logits.shape
    top_n = out.top_tokens.shape[1]
    count = tiles(vocabulary, tile)
    last_dim_contiguous(logits=logits)
    if count * top_n > CANDIDATES or top_n > min(vocabulary, tile.vocabulary):
        raise ValueError(
            f"the {top_n} likeliest of {vocabulary} tokens are too many: at most {CANDIDATES // count}"
        )
    if workspace.peak.numel() < rows * count or workspace.values.numel() < rows * count * top_n:
        raise ValueError(
            f"the workspace is too small for {rows} rows of {vocabulary} logits and {top_n} likeliest"
        )

    row_stride = logits.stride(0)
    forms = variants(logits.dtype, vocabulary, row_stride, tile)
    forms["summarise"].launch(
        (rows, count, 1),
        logits=logits,
        tile_peak=workspace.peak,
        tile_total=workspace.total,
        tile_values=workspace.values,
        tile_tokens=workspace.tokens,
        row_stride=row_stride,
        vocabulary=vocabulary,
        top_n=top_n,
    )
    forms["threshold"].launch(
        (rows, 1, 1),
        logits=logits,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        tile_peak=workspace.peak,
        peaks=workspace.peaks,
        thresholds=workspace.thresholds,
        row_stride=row_stride,
        vocabulary=vocabulary,
        tiles=count,
    )
    forms["draw"].launch(
        (rows, count, 1),
        logits=logits,
        temperature=sampling.temperature,
        seed=sampling.seed,
        position=sampling.position,
        peaks=workspace.peaks,
        thresholds=workspace.thresholds,
        tile_arrival=workspace.arrival,
        tile_winner=workspace.winner,
        row_stride=row_stride,
        vocabulary=vocabulary,
    )
    forms["finish"].launch(
        (rows, 1, 1),
        logits=logits,
        tile_peak=workspace.peak,
        tile_total=workspace.total,
        tile_values=workspace.values,
        tile_tokens=workspace.tokens,
        tile_arrival=workspace.arrival,
        tile_winner=workspace.winner,
        out_token=out.tokens,
        out_log_probability=out.log_probabilities,
        out_top_tokens=out.top_tokens,
        out_top_values=out.top_log_probabilities,
        row_stride=row_stride,
        tiles=count,
        top_n=top_n,
    )
