"""What one forward pass computes: the rows of its segments, laid out once and read by every layer.

A step concatenates the rows (tokens) of all its segments, without padding between them, in this order:

    [ prompt cells of segment 0 | of segment 1 | ... ][ decode rows ][ padding rows ]

A **prompt cell** is the part of a prompt between two lines of the prefill grid. Its attention is computed by
itself, with shapes that follow from its first and last position alone. A **decode row** is any token at or
after the end of the prompt: one just drawn, or one of many that are replayed after a preemption. Its keys are
cut into tiles of a fixed number of tokens, counted from position 0. Neither shape depends on the rest of the
batch, which makes a request's tokens independent of other requests. **Padding rows** only bring the row count
to one that the matrix products treat alike (`rows.py`); they read one key and write nothing.

KV blocks lie anywhere in `kv[block, layer, k|v, head, token, dim]`. The index arrays here are for layer 0;
other layers use the same ones on a view that begins later. Nothing in this file runs a model; `attention.py`
reads it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tokenmux.core.errors import InternalError
from tokenmux.core.facts import KvShape
from tokenmux.core.sampling import PromptTelling, Sampling
from tokenmux.models.network.rows import RowRule
from tokenmux.models.network.summed_rows import SummedRows, summed_rows
from tokenmux.models.network.told_rows import ToldRows, told_rows
from tokenmux.models.sampling.masks import StepConstraint
from tokenmux.models.sampling.past_tokens import PastTokens

TILE_TOKENS = 128
"""Keys per decode tile. On SmolLM2 with contexts of 96 to 256 tokens, 64, 128 and 256 were within 10%; 16
took twice as long."""

GREEDY = Sampling()

_Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segment:
    """One request's part of a step: its tokens at positions `[start, start + len(token_ids))`.

    `blocks` are the indices of its KV blocks, in order: enough for every token up to the end of the segment,
    and for later steps if the batch will be advanced. With `draw`, the token after the last one is drawn;
    output token i (counted from 0) cannot be one of `stop_token_ids` while i < `min_tokens`. `past` holds the
    tokens that the rules of `sampling` look at, before this step, and `constraint` is the grammar that the
    output obeys; later steps of the batch add to both. `telling` is what is to be told of tokens of the
    prompt, and `pooled` are positions of it of which the sums of hidden states are to be told.
    """

    token_ids: Sequence[int]
    start: int
    n_prompt: int
    blocks: Sequence[int]
    draw: bool = True
    sampling: Sampling = GREEDY
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    past: PastTokens | None = None
    telling: PromptTelling | None = None
    constraint: StepConstraint | None = None
    pooled: tuple[int, int] | None = None

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class KvViews:
    """The KV cache of one model, `kv[block, layer, k|v, head, token, dim]`, as each layer reads and writes
    it.

    `tokens[layer]` has a line of `head_dim` per token and head, for writing; `units[layer]` a line of
    `block_size * head_dim` per block and head, for reading. Index 0 is the layer's keys of head 0 in block 0.
    """

    kv: torch.Tensor
    shape: KvShape
    tokens: tuple[torch.Tensor, ...]
    units: tuple[torch.Tensor, ...]

    @property
    def tile_tokens(self) -> int:
        """Keys per decode tile: whole blocks."""
        return -(-TILE_TOKENS // self.shape.block_size) * self.shape.block_size

    @classmethod
    def of(cls, kv: torch.Tensor, shape: KvShape) -> "KvViews":
        """Views of `kv`; raises InternalError unless it has the shape's blocks, contiguous."""
        check_kv(kv, shape)
        units = kv.view(-1, shape.block_size * shape.head_dim)
        tokens = kv.view(-1, shape.head_dim)
        per_layer = 2 * shape.n_kv_heads
        return cls(
            kv,
            shape,
            tuple(tokens[layer * per_layer * shape.block_size :] for layer in range(shape.n_layers)),
            tuple(units[layer * per_layer :] for layer in range(shape.n_layers)),
        )


@dataclass(frozen=True, slots=True)
class PromptCell:
    """Rows `[row, row + n)` of the batch: positions `[start, start + n)` of one request's prompt."""

    row: int
    n: int
    start: int
    blocks: _Integers


@dataclass(frozen=True, slots=True)
class CellKeys:
    """What a prompt cell that begins after position 0 sees in a layer with a given window.

    `units` selects lines of `KvViews.units`, ordered `[k|v, head, block]`. The first `n_keys` tokens of them
    count, and `mask[n, n_keys]` (0 or -inf) is added to the scores.
    """

    units: torch.Tensor
    n_keys: int
    mask: torch.Tensor


class DecodeTiles(NamedTuple):
    """What all decode rows see in a layer with a given window, as tiles of a fixed number of keys.

    `units` selects lines of `KvViews.units`, ordered `[k|v, tile, head, block]`. `mask[tile, 1, 1, token]` is
    added to the scores. `merge[row, slot]` lists the tiles of each row, its width a power of two; an unused
    slot holds the number of tiles. If every row has one tile, in order, `row_of_tile` and `merge` are empty.
    """

    units: torch.Tensor
    mask: torch.Tensor
    row_of_tile: torch.Tensor
    merge: torch.Tensor


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """What attention needs for a step with decode rows only: index arrays, and the views of each layer."""

    write_lines: torch.Tensor
    tiles: Mapping[int | None, DecodeTiles]
    tokens: Sequence[torch.Tensor]
    units: Sequence[torch.Tensor]
    n_prompt_rows: Literal[0] = 0

    def decode_tiles(self, window: int | None) -> DecodeTiles:
        return self.tiles[window]


class StepBatch:
    """The rows of one step. Attention asks it for index arrays by window; they are computed once per step.

    `token_ids` and `positions` have shape `[1, n_rows]`, padding included; `logit_rows` are the rows whose
    logits are wanted, one for each entry of `drawing` (indices of segments), then padding. `told` are rows of
    prompts of which something is to be told, `pooled` those whose hidden states are added.
    """

    def __init__(
        self, segments: Sequence[Segment], views: KvViews, *, dtype: torch.dtype, grid: int, rule: RowRule
    ) -> None:
        """Lay out `segments`. Raises InternalError on a chunk off the prefill grid or blocks that do not
        reach its end."""
        if not segments:
            raise InternalError("a step needs at least one segment")
        self.segments = tuple(segments)
        self.views = views
        self.tokens, self.units = views.tokens, views.units
        self.tile_tokens = views.tile_tokens
        self.rule = rule
        self.drawing = tuple(i for i, segment in enumerate(segments) if segment.draw)
        self._dtype = dtype
        self._cell_keys: dict[tuple[int, int | None], CellKeys] = {}
        self._decode_tiles: dict[int | None, DecodeTiles] = {}

        cells: list[PromptCell] = []
        ids: list[int] = []
        positions: list[int] = []
        owners: list[int] = []
        last_row = [0] * len(segments)
        told: list[ToldRows] = []
        pooled: list[SummedRows] = []
        for index, segment in enumerate(segments):
            check_segment(segment, grid, views.shape)
            cut = min(segment.end, segment.n_prompt)
            if segment.telling is not None:
                told += told_rows(index, segment.telling, segment.start, cut, len(ids))
            for start in range(segment.start, cut, grid):
                n = min(start + grid, cut) - start
                if segment.pooled is not None:
                    pooled += summed_rows(index, segment.pooled, start, start + n, len(ids))
                cells.append(PromptCell(len(ids), n, start, np.asarray(segment.blocks, np.int64)))
                ids.extend(segment.token_ids[start - segment.start : start - segment.start + n])
                positions.extend(range(start, start + n))
                owners.extend([index] * n)
            last_row[index] = len(ids) - 1
        self.cells = tuple(cells)
        self.told = tuple(told)
        self.pooled = tuple(pooled)
        self.n_prompt_rows = len(ids)
        for index, segment in enumerate(segments):
            first = max(segment.start, segment.n_prompt)
            if first < segment.end:
                ids.extend(segment.token_ids[first - segment.start :])
                positions.extend(range(first, segment.end))
                owners.extend([index] * (segment.end - first))
                last_row[index] = len(ids) - 1
        self.n_rows = len(ids)
        n_padding = rule.padded(self.n_rows) - self.n_rows
        ids.extend([0] * n_padding)
        positions.extend([0] * n_padding)
        owners.extend([0] * n_padding)

        width = max(len(segment.blocks) for segment in segments)
        tables = np.zeros((len(segments), width), np.int64)
        for index, segment in enumerate(segments):
            tables[index, : len(segment.blocks)] = segment.blocks
        self._tables = tables
        self._owners = np.array(owners, np.int64)
        self._ids = np.array(ids, np.int64)
        self._positions = np.array(positions, np.int64)
        draw_rows = [last_row[i] for i in self.drawing]
        if draw_rows:
            draw_rows += draw_rows[-1:] * (rule.padded(len(draw_rows)) - len(draw_rows))
        self.logit_rows = self._tensor(np.array(draw_rows, np.int64))
        self._publish()

    @property
    def can_advance(self) -> bool:
        """True if each segment is one decode row that draws, so that the next step differs only in its
        tokens."""
        return self.n_prompt_rows == 0 and self.n_rows == len(self.drawing) == len(self.segments)

    def advance(self, token_ids: Sequence[int]) -> None:
        """Make this the next decode step, each segment one token further: `token_ids[i]` was drawn for
        segment i.

        Raises InternalError if the batch cannot be advanced or a segment's blocks end here.
        """
        if not self.can_advance or len(token_ids) != len(self.segments):
            raise InternalError("only a step of one drawing decode row per segment can be advanced")
        n = self.n_rows
        self._ids[:n] = token_ids
        self._positions[:n] += 1
        size = self.views.shape.block_size
        for position, segment in zip(self._positions[:n], self.segments, strict=True):
            if position >= len(segment.blocks) * size:
                raise InternalError(
                    f"no KV block for position {position}: {len(segment.blocks)} blocks of {size}"
                )
        remember(self.segments, token_ids)
        self._publish()

    def position(self, segment: int) -> int:
        """Position of the token that segment number `segment` draws in this step."""
        if self.can_advance:
            return int(self._positions[segment]) + 1
        return self.segments[segment].end

    def cell_keys(self, cell: int, window: int | None) -> CellKeys:
        """The keys of prompt cell number `cell` in layers that see `window` tokens back (None: all)."""
        key = (cell, window)
        found = self._cell_keys.get(key)
        if found is None:
            found = self._cell_keys[key] = self._make_cell_keys(self.cells[cell], window)
        return found

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Windows whose decode tiles were requested in this step."""
        return tuple(self._decode_tiles)

    def decode_tiles(self, window: int | None) -> DecodeTiles:
        """The tiles of the decode rows (padding included) in layers that see `window` tokens back (None:
        all)."""
        found = self._decode_tiles.get(window)
        if found is None:
            found = self._decode_tiles[window] = self._make_decode_tiles(window)
        return found

    def _publish(self) -> None:
        """Build the arrays of this step from tokens and positions."""
        self._cell_keys.clear()
        self._decode_tiles.clear()
        shape = self.views.shape
        self.token_ids = self._tensor(self._ids[None].copy())
        self.positions = self._tensor(self._positions[None].copy())
        positions = self._positions[: self.n_rows]
        blocks = self._tables[self._owners[: self.n_rows], positions // shape.block_size]
        heads = np.arange(2 * shape.n_kv_heads)[:, None]
        lines = (blocks * shape.n_layers * 2 * shape.n_kv_heads + heads) * shape.block_size
        self.write_lines = self._tensor((lines + positions % shape.block_size).reshape(-1))
        self.unfilled_blocks = self._find_unfilled_blocks(blocks, positions)

    def _find_unfilled_blocks(self, blocks: _Integers, positions: _Integers) -> tuple[int, ...]:
        """Blocks that this step begins and does not fill.

        The arena holds the bytes of former owners. A masked score makes a key harmless, but a NaN value times
        a weight of 0 is NaN, so the rest of such blocks is zeroed before the step.
        """
        size = self.views.shape.block_size
        begun = blocks[positions % size == 0]
        filled = blocks[positions % size == size - 1]
        return tuple(np.setdiff1d(begun, filled).tolist())

    def _make_cell_keys(self, cell: PromptCell, window: int | None) -> CellKeys:
        size = self.views.shape.block_size
        first = 0 if window is None else max(0, cell.start - window + 1) // size * size
        end = cell.start + cell.n
        keys = np.arange(first, end)
        queries = np.arange(cell.start, end)[:, None]
        visible = keys <= queries
        if window is not None:
            visible &= keys > queries - window
        blocks = cell.blocks[first // size : -(-end // size)]
        return CellKeys(self._units(blocks), end - first, self._mask(visible))

    def _make_decode_tiles(self, window: int | None) -> DecodeTiles:
        positions = self._positions[self.n_prompt_rows :]
        owners = self._owners[self.n_prompt_rows :]
        size = self.views.shape.block_size
        first = (
            np.zeros_like(positions)
            if window is None
            else np.maximum(0, positions - window + 1) // self.tile_tokens
        )
        counts = positions // self.tile_tokens - first + 1
        n_tiles = int(counts.sum())
        rows = np.repeat(np.arange(len(positions)), counts)
        slots = np.arange(n_tiles) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = (first[rows] + slots) * self.tile_tokens
        keys = starts[:, None] + np.arange(self.tile_tokens)
        last = positions[rows][:, None]
        visible = keys <= last
        if window is not None:
            visible &= keys > last - window
        # Beyond a row's last block a tile repeats that block: its values are finite, and masked.
        ordinals = np.minimum(keys[:, ::size], last) // size
        blocks = self._tables[owners[rows][:, None], ordinals]
        merge = row_of_tile = self._tensor(np.empty(0, np.int64))
        if n_tiles > len(positions):
            row_of_tile = self._tensor(rows)
            width = 1 << int(counts.max() - 1).bit_length()
            table = np.full((len(positions), width), n_tiles)
            table[rows, slots] = np.arange(n_tiles)
            merge = self._tensor(table)
        mask = self._mask(visible)[:, None, None]
        return DecodeTiles(self._units(blocks), mask, row_of_tile, merge)

    def _units(self, blocks: _Integers) -> torch.Tensor:
        """Lines of `KvViews.units` for `blocks[..., block]`, ordered `[k|v, ..., head, block]`, flat."""
        n_heads = self.views.shape.n_kv_heads
        heads = np.arange(n_heads)[:, None]
        keys = blocks[..., None, :] * (self.views.shape.n_layers * 2 * n_heads) + heads
        return self._tensor(np.stack((keys, keys + n_heads)).reshape(-1))

    def _mask(self, visible: npt.NDArray[np.bool_]) -> torch.Tensor:
        mask = np.where(visible, np.float32(0), np.float32(-np.inf))
        return torch.from_numpy(mask).to(device=self.views.kv.device, dtype=self._dtype)

    def _tensor(self, array: _Integers) -> torch.Tensor:
        return torch.from_numpy(array).to(self.views.kv.device)


def remember(segments: Sequence[Segment], token_ids: Sequence[int]) -> None:
    """Each segment drew its token of `token_ids`: its rules and its grammar look at it from now on."""
    for segment, token in zip(segments, token_ids, strict=True):
        if segment.past is not None:
            segment.past.append(token)
        if segment.constraint is not None:
            segment.constraint.output.append(token)


def check_kv(kv: torch.Tensor, shape: KvShape) -> None:
    """Raise InternalError unless `kv` has the shape's blocks, contiguous."""
    expected = (shape.n_layers, 2, shape.n_kv_heads, shape.block_size, shape.head_dim)
    if tuple(kv.shape[1:]) != expected or not kv.is_contiguous():
        raise InternalError(f"KV tensor of shape {tuple(kv.shape)} is not [n, {expected}] or not contiguous")


def check_segment(segment: Segment, grid: int, shape: KvShape) -> None:
    """Raise unless the segment's attention will have the shapes that it would have alone."""
    if not segment.token_ids:
        raise InternalError("a segment needs at least one token")
    if segment.end > len(segment.blocks) * shape.block_size:
        raise InternalError(
            f"tokens up to {segment.end} need {shape.blocks_for(segment.end)} KV blocks, not "
            f"{len(segment.blocks)}"
        )
    if segment.start < segment.n_prompt:
        ends_well = segment.end % grid == 0 or segment.end >= segment.n_prompt
        if segment.start % grid or not ends_well:
            raise InternalError(
                f"chunk [{segment.start}, {segment.end}) of a prompt of {segment.n_prompt} is off "
                f"the grid of {grid}"
            )
