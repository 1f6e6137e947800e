"""Host side of `sample`: its workspace, its compiled forms and its five launches. No host synchronisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tokenmux.kernels.arguments import last_dim_contiguous
from tokenmux.kernels.sample import kernel
from tokenmux.kernels.tiles import SampleTile, padded
from tokenmux.kernels.variant import Variant

if TYPE_CHECKING:
    from tokenmux.kernels.sample.parameters import Penalties, Sampled, SamplingRows

CANDIDATES = 2048
"""The n largest of all tiles that `finish` holds in registers: 64 tiles (a vocabulary of 262,144) of 32."""

ENTRY_TILE = 256

_KEY_BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}
"""Leading bits that tell the keys of a dtype apart, as float32: sign, exponent and mantissa, made even."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """What the kernels of one draw tell each other; one for each tile of vocabulary."""

    peak: torch.Tensor
    total: torch.Tensor
    values: torch.Tensor
    tokens: torch.Tensor
    arrival: torch.Tensor
    winner: torch.Tensor
    thresholds: torch.Tensor

    @staticmethod
    def allocate(rows: int, vocabulary: int, top_n: int, tile: SampleTile, device: str) -> Workspace:
        slots = rows * tiles(vocabulary, tile)
        return Workspace(
            peak=torch.empty(slots, dtype=torch.float32, device=device),
            total=torch.empty(slots, dtype=torch.float32, device=device),
            values=torch.empty(slots * top_n, dtype=torch.float32, device=device),
            tokens=torch.empty(slots * top_n, dtype=torch.int32, device=device),
            arrival=torch.empty(slots, dtype=torch.float32, device=device),
            winner=torch.empty(slots, dtype=torch.int32, device=device),
            thresholds=torch.empty(rows, dtype=torch.int64, device=device),
        )


def tiles(vocabulary: int, tile: SampleTile) -> int:
    return -(-vocabulary // tile.vocabulary)


def variants(dtype: torch.dtype, vocabulary: int, row_stride: int, tile: SampleTile) -> dict[str, Variant]:
    """The compiled forms of the five kernels, by name."""
    logits = {"logits": dtype}
    stride = {"row_stride": int}
    strides = {"row_stride": int, "vocabulary": int}
    aligned = {"ALIGNED": row_stride % 16 == 0 and vocabulary % 16 == 0}
    padded_tiles = {"TILES_PADDED": padded(tiles(vocabulary, tile))}
    settings = dict.fromkeys(("temperature", "top_p", "min_p"), torch.float32)
    tops = {"tile_values": torch.float32, "tile_tokens": torch.int32}
    sums = {"tile_peak": torch.float32, "tile_total": torch.float32}
    arrivals = {"tile_arrival": torch.float32, "tile_winner": torch.int32}
    return {
        "penalise": Variant(
            kernel.penalise,
            {
                **logits,
                **dict.fromkeys(("tokens", "counts", "lengths"), torch.int32),
                **dict.fromkeys(("repetition", "frequency", "presence"), torch.float32),
                **stride,
                "entries": int,
            },
            {"TILE": ENTRY_TILE},
            unaligned=kernel.UNALIGNED,
            warps=tile.warps,
        ),
        "summarise": Variant(
            kernel.summarise,
            {**logits, **sums, **tops, **strides, "top_n": int},
            {"TILE": tile.vocabulary, **aligned},
            unaligned=kernel.UNALIGNED,
            warps=tile.warps,
        ),
        "threshold": Variant(
            kernel.threshold,
            {
                **logits,
                **settings,
                "top_k": torch.int32,
                "tile_peak": torch.float32,
                "thresholds": torch.int64,
                **strides,
                "tiles": int,
            },
            {"TILE": tile.search, **padded_tiles, "KEY_BITS": _KEY_BITS[dtype], **aligned},
            unaligned=kernel.UNALIGNED,
            warps=tile.search_warps,
        ),
        "draw": Variant(
            kernel.draw,
            {
                **logits,
                "temperature": torch.float32,
                **dict.fromkeys(("seed", "position", "thresholds"), torch.int64),
                **arrivals,
                **strides,
            },
            {"TILE": tile.vocabulary, **aligned},
            unaligned=kernel.UNALIGNED,
            warps=tile.warps,
        ),
        "finish": Variant(
            kernel.finish,
            {
                **logits,
                **sums,
                **tops,
                **arrivals,
                **dict.fromkeys(("out_token", "out_top_tokens"), torch.int64),
                **dict.fromkeys(("out_log_probability", "out_top_values"), torch.float32),
                **stride,
                **dict.fromkeys(("tiles", "top_n"), int),
            },
            {**padded_tiles, "CANDIDATES": CANDIDATES},
            unaligned=(*kernel.UNALIGNED, "logits"),
            warps=tile.warps,
        ),
    }


def sample(
    logits: torch.Tensor,
    sampling: SamplingRows,
    out: Sampled,
    workspace: Workspace,
    *,
    tile: SampleTile,
    penalties: Penalties | None = None,
) -> None:
    """Draws a token for each row of `logits` `[row, vocabulary]` into `out`; see `reference.py` for the
    meaning.

    Penalties change `logits` in place. The n of the n likeliest is the width of `out.top_tokens`. Raises
    `ValueError` for a workspace that is too small or more candidates than fit.
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

    forms = variants(logits.dtype, vocabulary, logits.stride(0), tile)
    strides = {"row_stride": logits.stride(0), "vocabulary": vocabulary}
    sums = {"tile_peak": workspace.peak, "tile_total": workspace.total}
    tops = {"tile_values": workspace.values, "tile_tokens": workspace.tokens}
    arrivals = {"tile_arrival": workspace.arrival, "tile_winner": workspace.winner}
    if penalties is not None:
        entries = penalties.tokens.shape[1]
        forms["penalise"].launch(
            (rows, -(-entries // ENTRY_TILE)),
            logits=logits,
            tokens=penalties.tokens,
            counts=penalties.counts,
            lengths=penalties.lengths,
            repetition=penalties.repetition,
            frequency=penalties.frequency,
            presence=penalties.presence,
            row_stride=logits.stride(0),
            entries=entries,
        )
    forms["summarise"].launch((rows, count), logits=logits, **sums, **tops, **strides, top_n=top_n)
    forms["threshold"].launch(
        (rows,),
        logits=logits,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        tile_peak=workspace.peak,
        thresholds=workspace.thresholds,
        **strides,
        tiles=count,
    )
    forms["draw"].launch(
        (rows, count),
        logits=logits,
        temperature=sampling.temperature,
        seed=sampling.seed,
        position=sampling.position,
        thresholds=workspace.thresholds,
        **arrivals,
        **strides,
    )
    forms["finish"].launch(
        (rows,),
        logits=logits,
        **sums,
        **tops,
        **arrivals,
        out_token=out.tokens,
        out_log_probability=out.log_probabilities,
        out_top_tokens=out.top_tokens,
        out_top_values=out.top_log_probabilities,
        row_stride=logits.stride(0),
        tiles=count,
        top_n=top_n,
    )
