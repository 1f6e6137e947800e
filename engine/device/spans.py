"""Where the bytes of a launch lie, as offsets."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tokenmux.device.cuda.ordering import Spans
from tokenmux.messages.launches import ArenaMove, PagedBlocks


class PagingSpan(NamedTuple):
    """`n_bytes` at `device` in the arena and at `host` in the memory for paged-out KV."""

    device: int
    host: int
    n_bytes: int


def paging_spans(blocks: PagedBlocks, block_bytes: int) -> list[PagingSpan]:
    """One span per run of blocks that are neighbours on both sides, in either direction (blocks allocated
    together run downwards)."""
    spans: list[PagingSpan] = []
    for there, here in zip(blocks.device, blocks.host, strict=True):
        device, host = there * block_bytes, here * block_bytes
        last = spans[-1] if spans else None
        if last and (last.device + last.n_bytes, last.host + last.n_bytes) == (device, host):
            spans[-1] = last._replace(n_bytes=last.n_bytes + block_bytes)
        elif last and (last.device - block_bytes, last.host - block_bytes) == (device, host):
            spans[-1] = PagingSpan(device, host, last.n_bytes + block_bytes)
        else:
            spans.append(PagingSpan(device, host, block_bytes))
    return spans


def block_spans(indices: Sequence[Sequence[int]], block_bytes: int) -> Spans:
    """The bytes of blocks given by their indices in the view of the whole arena, merged."""
    flat = np.unique(np.fromiter((i for some in indices for i in some), np.int64))
    if not len(flat):
        return ()
    last = np.flatnonzero(np.diff(flat) != 1)
    starts = flat[np.concatenate(([0], last + 1))] * block_bytes
    ends = (flat[np.concatenate((last, [len(flat) - 1]))] + 1) * block_bytes
    return tuple(zip(starts.tolist(), ends.tolist(), strict=True))


class Piece(NamedTuple):
    """`n_bytes` from `source` to `target`; through a separate buffer if these overlap and the piece is not
    smaller than their distance."""

    source: int
    target: int
    n_bytes: int
    aside: bool = False


def move_pieces(move: ArenaMove, n_bytes: int) -> list[Piece]:
    """Cut a move into copies whose sides do not overlap, of at most `n_bytes` if the whole overlaps itself.

    Carried out in order they are a memmove: a slide down begins at its low end, one up at its high end.
    """
    distance = abs(move.target - move.source)
    if distance >= move.n_bytes:
        return [Piece(move.source, move.target, move.n_bytes)]
    starts = range(0, move.n_bytes, n_bytes)
    return [
        Piece(move.source + start, move.target + start, size, aside=size > distance)
        for start in (starts if move.target < move.source else reversed(starts))
        for size in [min(n_bytes, move.n_bytes - start)]
    ]
