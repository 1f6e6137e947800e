"""Byte floors against figures counted by hand."""

from __future__ import annotations

import pytest

from tokenmux.kernels import floors
from tokenmux.kernels.layout import KVLayout

EIGHT_HEADS = KVLayout(layers=32, kv_heads=8, head_dim=128, block_size=16)


def test_a_token_of_a_layer_is_its_key_and_its_value():
    key_and_value = 2 * 8 * 128 * 2
    assert floors.kv_append(EIGHT_HEADS, tokens=3, itemsize=2) == 3 * 2 * key_and_value
    queries_and_results = 2 * 32 * 128 * 2
    assert floors.paged_decode(EIGHT_HEADS, [100, 0], 32, 2) == 100 * key_and_value + 2 * queries_and_results
    assert (
        floors.paged_decode(EIGHT_HEADS, [100], 32, 2, window=10) == 10 * key_and_value + queries_and_results
    )


def test_prefill_reads_what_its_queries_see():
    key_and_value, query_and_result = 2 * 8 * 128 * 2, 2 * 32 * 128 * 2
    assert (
        floors.paged_prefill(EIGHT_HEADS, [100, 50], [20, 0], 32, 2)
        == 100 * key_and_value + 20 * query_and_result
    )
    assert (
        floors.paged_prefill(EIGHT_HEADS, [100], [20], 32, 2, window=8)
        == 27 * key_and_value + 20 * query_and_result
    )
    # Queries at positions 8 and 9 see 9 and 10 keys; in a window of 4, four each.
    assert floors.paged_prefill_flops([10], [2], query_heads=1, head_dim=128) == 4 * 128 * 19
    assert floors.paged_prefill_flops([10], [2], query_heads=1, head_dim=128, window=4) == 4 * 128 * 8


def test_copies_read_and_write_whole_blocks():
    assert EIGHT_HEADS.block_elements * 2 == 2 * 2**20
    assert floors.kv_page(EIGHT_HEADS, blocks=3, itemsize=2) == 3 * 2 * 2 * 2**20
    assert floors.kv_page_int8(EIGHT_HEADS, 1, 2) == 2 * 2**20 + 2**20 + 2**20 // 128 * 4
    assert floors.sample(rows=2, vocabulary=151_936, itemsize=2) == 2 * 151_936 * 2


def test_layouts_refuse_what_kernels_cannot_read():
    with pytest.raises(ValueError, match="multiple of 16"):
        KVLayout(1, 1, 72, 16)
    with pytest.raises(ValueError, match="at least 1"):
        KVLayout(0, 1, 64, 16)
