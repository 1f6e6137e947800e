"""Byte floors: the least that each kernel must move to and from device memory, for given shapes.

A kernel bound by memory cannot be faster than its floor over the device's copy bandwidth, so the quotient is
the share of the machine that it reaches. Floors count each byte that must cross once: what a second reader
finds in the L2 cache is free, and tables and lengths (8 bytes per block) are left out. Everything is in
bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenmux.kernels.kv_page.quantised import record_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenmux.kernels.layout import KVLayout


def kv_append(layout: KVLayout, tokens: int, itemsize: int) -> int:
    """New keys and values of one layer: read once, written once."""
    return 2 * _token(layout, itemsize) * tokens


def paged_decode(
    layout: KVLayout, lengths: Sequence[int], query_heads: int, itemsize: int, window: int | None = None
) -> int:
    """Each visible key and value of one layer once, queries in, results out. Partial results stay in the
    cache."""
    visible = sum(length if window is None else min(length, window) for length in lengths)
    return visible * _token(layout, itemsize) + 2 * len(lengths) * query_heads * layout.head_dim * itemsize


def paged_prefill(
    layout: KVLayout,
    lengths: Sequence[int],
    chunks: Sequence[int],
    query_heads: int,
    itemsize: int,
    window: int | None = None,
) -> int:
    """Each visible key and value of one layer once, queries in, results out. Long chunks are bound by
    arithmetic first: see `paged_prefill_flops`."""
    visible = 0
    for length, new in zip(lengths, chunks, strict=True):
        reach = length if window is None else min(length, window + new - 1)
        visible += reach if new else 0
    return visible * _token(layout, itemsize) + 2 * sum(chunks) * query_heads * layout.head_dim * itemsize


def paged_prefill_flops(
    lengths: Sequence[int],
    chunks: Sequence[int],
    query_heads: int,
    head_dim: int,
    window: int | None = None,
) -> int:
    """Multiplications and additions of one layer: 4 * head_dim for each pair of a query and a key that it
    sees."""
    pairs = 0
    for length, new in zip(lengths, chunks, strict=True):
        for position in range(length - new, length):
            pairs += position + 1 if window is None else min(position + 1, window)
    return 4 * head_dim * query_heads * pairs


def kv_page(layout: KVLayout, blocks: int, itemsize: int) -> int:
    """Every block read once and written once; one of the two crosses the bus."""
    return 2 * blocks * layout.block_elements * itemsize


def kv_page_int8(layout: KVLayout, blocks: int, itemsize: int) -> int:
    """Blocks on one side, records on the other."""
    return blocks * (layout.block_elements * itemsize + record_bytes(layout))


def sample(rows: int, vocabulary: int, itemsize: int) -> int:
    """Every logit once. Further passes (the draw, and the search for top_k and top_p) read the L2 cache."""
    return rows * vocabulary * itemsize


def _token(layout: KVLayout, itemsize: int) -> int:
    """Key and value of one token in one layer."""
    return 2 * layout.kv_heads * layout.head_dim * itemsize
