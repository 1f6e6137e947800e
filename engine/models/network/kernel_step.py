"""A step on a device that runs Triton kernels: its rows, cut into passes of fixed shape, and what the kernels
read of them.

On a GPU the library chooses a product's kernel by its number of rows, and a reduction's by its shape, and
each rounds differently; padding to a multiple does not make them agree. So no shape here depends on the rest
of the batch:

    prompt cell of more than `rows` tokens    a pass of its own, as long as the cell
    shorter cells, then decode rows           packed in this order into passes of `rows` rows, the last padded

A row is then computed by the same kernels alone and in company, at most on another line of the same tile
(`rows.py` checks on the device that this changes no bit), and the attention kernels themselves promise that a
row does not depend on its neighbours.

Everything that a pass needs goes to the device in one copy from page-locked memory (`staging.py`): ids,
positions, the slots of its keys and values, KV tables and lengths; every layer reads the same. This module
imports Triton, so it is imported only when a step is laid out for the kernels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tokenmux.core.errors import InternalError
from tokenmux.core.facts import KvShape
from tokenmux.core.sampling import LogProbabilities
from tokenmux.kernels.kv_append.launch import kv_append
from tokenmux.kernels.layout import KVLayout
from tokenmux.kernels.paged_decode import launch as decode
from tokenmux.kernels.paged_prefill.launch import paged_prefill
from tokenmux.kernels.tiles import StepTiles
from tokenmux.models.network.batch import Segment, check_kv, check_segment, remember
from tokenmux.models.network.kernel_draw import draw_rows_on_device, log_probabilities_on_device
from tokenmux.models.network.staging import Staging
from tokenmux.models.network.summed_rows import SummedRows, summed_rows
from tokenmux.models.network.told_rows import ToldRows, told_rows
from tokenmux.models.sampling.draw import Draw

WORKSPACE_BYTES = 256 << 20
"""Limit of decode attention's memory for partial results. A row of 128k tokens of a 72B model takes 17 MB,
and 64 of them at once would take 1.1 GB that no budget accounts for: more rows than fit go in several
launches."""

_Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Cell:
    """Positions `[start, start + n)` of the prompt of segment number `segment`."""

    segment: int
    start: int
    n: int


@dataclass(frozen=True, slots=True)
class _Pass:
    """Rows of one pass before its padding: those of `cells`, one after another, then decode rows.

    `segments` and `positions` have an entry for each row. Row `wanted[n]` gives the logits for the token of
    segment `drawing[n]`.
    """

    cells: tuple[_Cell, ...]
    segments: _Integers
    positions: _Integers
    wanted: tuple[int, ...]
    drawing: tuple[int, ...]
    told: tuple[ToldRows, ...]
    pooled: tuple[SummedRows, ...]

    @property
    def n_prompt_rows(self) -> int:
        return sum(cell.n for cell in self.cells)


@dataclass(frozen=True, slots=True)
class Chunks:
    """The prompt cells of a pass, as `paged_prefill` reads them."""

    table: torch.Tensor
    lengths: torch.Tensor
    starts: torch.Tensor
    longest: int


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """The decode rows of a pass, without its cells and padding, as `paged_decode` reads them."""

    table: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True, slots=True)
class KernelPass:
    """One pass on the device: the model's inputs, and attention over `arena`, the flat KV tensor.

    `token_ids` and `positions` are `[1, n_rows]`. `slots` and `count` are what `kv_append` reads. `told` are
    rows of prompts of which something is to be told, `pooled` those whose hidden states are added.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    logit_rows: torch.Tensor
    arena: torch.Tensor
    layout: KVLayout
    tiles: StepTiles
    slots: torch.Tensor
    count: torch.Tensor
    n_prompt_rows: int
    chunks: Chunks | None
    decode_rows: DecodeRows | None
    told: tuple[ToldRows, ...]
    pooled: tuple[SummedRows, ...]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Write keys and values, then attend all rows: `[1, n_rows, q_heads, head_dim]`. Arguments as in
        `paged_attention`."""
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        kv_append(k, v, self.arena, self.slots, self.count, layout=self.layout, layer=layer)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        n = self.n_prompt_rows
        if self.chunks is not None:
            paged_prefill(
                q[:n],
                self.arena,
                self.chunks.table,
                self.chunks.lengths,
                self.chunks.starts,
                out[:n],
                layout=self.layout,
                layer=layer,
                longest_chunk=self.chunks.longest,
                tile=self.tiles.prefill,
                scale=scale,
                window=window,
                softcap=softcap,
                sinks=sinks,
            )
        end = n
        if self.decode_rows is not None:
            end += len(self.decode_rows.lengths)
            self._decode(
                layer, q[n:end], out[n:end], scale=scale, window=window, softcap=softcap, sinks=sinks
            )
        out[end:].zero_()
        return out.unsqueeze(0)

    def _decode(
        self,
        layer: int,
        query: torch.Tensor,
        out: torch.Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> None:
        """Attend the decode rows, without padding: its programs would all end at once, but 64 times as many
        would have to be started.

        The number of rows in a launch changes no row, so as many go together as the workspace allows.
        """
        assert self.decode_rows is not None
        table, lengths = self.decode_rows.table, self.decode_rows.lengths
        n_rows, n_heads, head_dim = query.shape
        row_partials = n_heads * decode.splits(table, self.layout, self.tiles.decode)
        together = min(n_rows, max(1, WORKSPACE_BYTES // (row_partials * (head_dim + 1) * 4)))
        workspace = decode.DecodeWorkspace.allocate(together * row_partials, head_dim, query.device)
        for first in range(0, n_rows, together):
            rows = slice(first, first + together)
            decode.paged_decode(
                query[rows],
                self.arena,
                table[rows],
                lengths[rows],
                out[rows],
                workspace,
                layout=self.layout,
                layer=layer,
                tile=self.tiles.decode,
                scale=scale,
                window=window,
                softcap=softcap,
                sinks=sinks,
            )


class KernelBatch:
    """The passes of one step: the counterpart of `StepBatch` for the kernels. Prepared, run, and advanced
    if it only decodes."""

    def __init__(
        self,
        segments: Sequence[Segment],
        kv: torch.Tensor,
        shape: KvShape,
        *,
        grid: int,
        tiles: StepTiles,
        staging: Staging,
    ) -> None:
        """Lay out `segments` over `kv[block, ...]`. Raises InternalError as `StepBatch` does."""
        if not segments:
            raise InternalError("a step needs at least one segment")
        check_kv(kv, shape)
        self.segments = tuple(segments)
        self.drawing = tuple(i for i, segment in enumerate(segments) if segment.draw)
        self._arena = kv.view(-1)
        self._layout = KVLayout(shape.n_layers, shape.n_kv_heads, shape.head_dim, shape.block_size)
        self._tiles = tiles
        self._staging = staging
        width = max(len(segment.blocks) for segment in segments)
        self._tables = np.zeros((len(segments), width), np.int64)
        for index, segment in enumerate(segments):
            check_segment(segment, grid, shape)
            self._tables[index, : len(segment.blocks)] = segment.blocks
        self._tables *= self._layout.block_elements
        self._passes = _cut(self.segments, grid, tiles.rows)
        self._n_advanced = 0
        self._drawn: Sequence[int] | None = None

    @property
    def rows_of_a_pass(self) -> int:
        """Rows of a pass that is not one long cell, and rows of every product of the head."""
        return self._tiles.rows

    @property
    def n_passes(self) -> int:
        return len(self._passes)

    @property
    def can_advance(self) -> bool:
        """True if each segment is one decode row that draws, so that the next step differs only in its
        tokens."""
        return all(
            segment.draw and len(segment.token_ids) == 1 and segment.start >= segment.n_prompt
            for segment in self.segments
        )

    def advance(self, token_ids: Sequence[int]) -> None:
        """Make this the next decode step: `token_ids[i]` was drawn for segment i. Raises InternalError as
        `StepBatch` does."""
        if not self.can_advance or len(token_ids) != len(self.segments):
            raise InternalError("only a step of one drawing decode row per segment can be advanced")
        for index, segment in enumerate(self.segments):
            position = self.position(index)
            if position >= len(segment.blocks) * self._layout.block_size:
                raise InternalError(
                    f"no KV block for position {position}: {len(segment.blocks)} blocks of "
                    f"{self._layout.block_size}"
                )
        remember(self.segments, token_ids)
        self._n_advanced += 1
        self._drawn = tuple(token_ids)

    def position(self, segment: int) -> int:
        """Position of the token that segment number `segment` draws in this step."""
        return self.segments[segment].end + self._n_advanced

    def run(self, forward: Callable[[KernelPass], torch.Tensor]) -> torch.Tensor:
        """The logits `[row, vocabulary]`, one row for each entry of `drawing`. `forward` computes those of
        a pass's `logit_rows`."""
        pieces: list[torch.Tensor] = []
        order: list[int] = []
        for cut, on_device in self.passes():
            logits = forward(on_device)
            pieces.append(logits[: len(cut.wanted)])
            order.extend(cut.drawing)
        joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if order == sorted(order):
            return joined
        rows = np.argsort(np.array(order, np.int64))
        return joined[self._staging.upload({"rows": rows})["rows"]]

    def passes(self) -> Iterator[tuple[_Pass, KernelPass]]:
        """Each pass, and its form on the device, uploaded when its turn comes."""
        for cut in self._passes:
            yield cut, self._on_device(cut)

    def draw(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
        """Draw a token for each row of `logits`. Sleeps until the device has drawn them."""
        return draw_rows_on_device(logits, draws, self._tiles, self._staging)

    def log_probabilities(
        self, logits: torch.Tensor, tokens: Sequence[int], draws: Sequence[Draw]
    ) -> tuple[LogProbabilities | None, ...]:
        """What is told of each row of `logits`. Sleeps until the device has computed it."""
        return log_probabilities_on_device(logits, tokens, draws, self._tiles, self._staging)

    def _on_device(self, cut: _Pass) -> KernelPass:
        n, size = len(cut.segments), self._layout.block_size
        n_rows = max(n, self._tiles.rows)
        positions = cut.positions + self._n_advanced
        slots = np.zeros(n_rows, np.int64)
        slots[:n] = self._tables[cut.segments, positions // size] + positions % size * self._layout.head_dim
        n_prompt = cut.n_prompt_rows
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "ids": _padded(self._token_ids(cut), n_rows),
            "positions": _padded(positions, n_rows),
            "slots": slots,
            "count": np.array([n], np.int32),
            "logit_rows": _padded(np.array(cut.wanted, np.int64), self._tiles.rows if cut.wanted else 0),
        }
        if cut.cells:
            ends = np.array([cell.start + cell.n for cell in cut.cells])
            arrays |= {
                "chunk_table": self._table(np.array([cell.segment for cell in cut.cells]), int(ends.max())),
                "chunk_lengths": ends.astype(np.int32),
                "chunk_starts": np.cumsum([0, *(cell.n for cell in cut.cells)]).astype(np.int32),
            }
        if n > n_prompt:
            lengths = positions[n_prompt:] + 1
            arrays |= {
                "table": self._table(cut.segments[n_prompt:], int(lengths.max())),
                "lengths": lengths.astype(np.int32),
            }
        on_device = self._staging.upload(arrays)
        return KernelPass(
            token_ids=on_device["ids"][None],
            positions=on_device["positions"][None],
            logit_rows=on_device["logit_rows"],
            arena=self._arena,
            layout=self._layout,
            tiles=self._tiles,
            slots=on_device["slots"],
            count=on_device["count"],
            n_prompt_rows=n_prompt,
            chunks=Chunks(
                on_device["chunk_table"],
                on_device["chunk_lengths"],
                on_device["chunk_starts"],
                max(cell.n for cell in cut.cells),
            )
            if cut.cells
            else None,
            decode_rows=DecodeRows(on_device["table"], on_device["lengths"]) if n > n_prompt else None,
            told=cut.told,
            pooled=cut.pooled,
        )

    def _token_ids(self, cut: _Pass) -> _Integers:
        if self._drawn is not None:
            return np.array([self._drawn[index] for index in cut.segments], np.int64)
        segments = self.segments
        return np.array(
            [
                segments[index].token_ids[position - segments[index].start]
                for index, position in zip(cut.segments.tolist(), cut.positions.tolist(), strict=True)
            ],
            np.int64,
        )

    def _table(self, segments: _Integers, n_tokens: int) -> _Integers:
        """A row of block offsets for each of `segments`, as wide as `n_tokens` tokens need."""
        table: _Integers = self._tables[segments, : -(-n_tokens // self._layout.block_size)]
        return table


def _cut(segments: Sequence[Segment], grid: int, n_rows: int) -> tuple[_Pass, ...]:
    """The passes of a step, in an order in which every key is written before it is read."""
    passes: list[_Pass] = []
    short: list[_Cell] = []
    for index, segment in enumerate(segments):
        end = min(segment.end, segment.n_prompt)
        for start in range(segment.start, end, grid):
            cell = _Cell(index, start, min(start + grid, end) - start)
            if cell.n > n_rows:
                passes.append(_make_pass(segments, [cell], []))
            else:
                short.append(cell)
    rows = [
        (index, position)
        for index, segment in enumerate(segments)
        for position in range(max(segment.start, segment.n_prompt), segment.end)
    ]
    while short or rows:
        cells: list[_Cell] = []
        room = n_rows
        while short and short[0].n <= room:
            room -= short[0].n
            cells.append(short.pop(0))
        taken = [] if short else rows[:room]
        del rows[: len(taken)]
        passes.append(_make_pass(segments, cells, taken))
    return tuple(passes)


def _make_pass(segments: Sequence[Segment], cells: list[_Cell], rows: list[tuple[int, int]]) -> _Pass:
    all_rows = [(cell.segment, cell.start + i) for cell in cells for i in range(cell.n)] + rows
    drawing = {
        index: row
        for row, (index, position) in enumerate(all_rows)
        if segments[index].draw and position == segments[index].end - 1
    }
    owners, positions = np.array(all_rows, np.int64).T
    told: list[ToldRows] = []
    pooled: list[SummedRows] = []
    row = 0
    for cell in cells:
        segment, end = segments[cell.segment], cell.start + cell.n
        if segment.telling is not None:
            told += told_rows(cell.segment, segment.telling, cell.start, end, row)
        if segment.pooled is not None:
            pooled += summed_rows(cell.segment, segment.pooled, cell.start, end, row)
        row += cell.n
    return _Pass(
        tuple(cells),
        owners,
        positions,
        tuple(drawing.values()),
        tuple(drawing),
        tuple(told),
        tuple(pooled),
    )


def _padded(array: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """`array` with zeros behind it."""
    return np.pad(array, (0, length - len(array)))
