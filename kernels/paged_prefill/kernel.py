"""Device code of `paged_prefill`: one program per tile of query tokens and query head.

    positions   0 ......... prefix ........ | ....... chunk ....... | length
    query tiles                         [ : q q q q ][ q q q q q q ][ q : ]
    one of them walks      [ window ========:=======  q q q q q q ]

Query tiles lie on a fixed grid from position 0. Each walks the KV tiles from the oldest token that any of its
queries sees to the last one.

The chunk's own keys and values are read from its blocks like the prefix: `kv_append` has put them there, they
are still in the L2 cache, and one source means one code path. KV tiles also lie on a fixed grid from position
0, and a KV tile in which a query sees nothing changes none of its sums. So wherever chunks begin, and
whatever else is in the batch, a query has the same place in the same tile and adds the same numbers in the
same order.
"""

import triton.language as tl

from tokenmux.kernels import kinds
from tokenmux.kernels.softmax import LOG2_E, base2_logits
from tokenmux.kernels.variant import kernel


@kernel
def attend_chunk(
    query: kinds.MODEL,
    arena: kinds.MODEL,
    table: kinds.INT64,
    lengths: kinds.INT32,
    starts: kinds.INT32,
    sinks: kinds.SINKS,
    out: kinds.MODEL,
    query_token_16: kinds.NUMBER,
    query_head_16: kinds.NUMBER,
    table_row: kinds.NUMBER,
    layer: kinds.NUMBER,
    kv_heads: kinds.NUMBER,
    group: kinds.NUMBER,
    window: kinds.NUMBER,
    scale: kinds.FRACTION,
    softcap: kinds.FRACTION,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    TOKEN_TILE: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    row = tl.program_id(2).to(tl.int64)

    first_token = tl.load(starts + row)
    new = tl.load(starts + row + 1) - first_token
    length = tl.load(lengths + row)
    prefix = length - new
    tile_at = (prefix // QUERY_TILE + tl.program_id(0)) * QUERY_TILE
    if (tile_at >= length) | (new == 0):
        return

    query_at = tile_at + tl.arange(0, QUERY_TILE)
    nth = query_at - prefix
    dim = tl.arange(0, DIM_TILE)
    in_chunk = (nth >= 0) & (nth < new)
    in_head = dim < HEAD_DIM
    token = (first_token + nth).to(tl.int64)
    query_place = token[:, None] * query_token_16 * 16 + head * query_head_16 * 16 + dim[None, :]
    q = tl.load(query + query_place, mask=in_chunk[:, None] & in_head[None, :], other=0.0)

    keys = arena + (layer * 2 * kv_heads + head // group).to(tl.int64) * (BLOCK_SIZE * HEAD_DIM)
    values = keys + kv_heads.to(tl.int64) * (BLOCK_SIZE * HEAD_DIM)

    oldest = tl.maximum(tile_at + 1 - window, 0)
    begin = oldest // TOKEN_TILE * TOKEN_TILE
    end = tl.minimum(tile_at + QUERY_TILE, length)

    # The sink starts the sum, as in the merge of `paged_decode`.
    if sinks is None:
        peak = tl.full([QUERY_TILE], float("-inf"), tl.float32)
        total = tl.zeros([QUERY_TILE], tl.float32)
    else:
        peak = tl.zeros([QUERY_TILE], tl.float32) + tl.load(sinks + head).to(tl.float32) * LOG2_E
        total = tl.full([QUERY_TILE], 1.0, tl.float32)
    mixed = tl.zeros([QUERY_TILE, DIM_TILE], tl.float32)
    for start in range(begin, end, TOKEN_TILE):
        key_at = start + tl.arange(0, TOKEN_TILE)
        used = (key_at >= oldest) & (key_at < end)
        offset = tl.load(table + row * table_row + key_at // BLOCK_SIZE, mask=used, other=0)
        offset = tl.multiple_of(offset, 16)
        place = (offset + key_at % BLOCK_SIZE * HEAD_DIM)[:, None] + dim[None, :]
        present = used[:, None] & in_head[None, :]
        k = tl.load(keys + place, mask=present, other=0.0)
        v = tl.load(values + place, mask=present, other=0.0)

        product = tl.dot(q, tl.trans(k), input_precision="ieee")
        # An age is how far back a key lies. Differences cannot overflow, as `query_at - window` could.
        age = query_at[:, None] - key_at[None, :]
        seen = (age >= 0) & (age < window) & used[None, :]
        logits = tl.where(seen, base2_logits(product, scale, softcap, SOFTCAP), float("-inf"))
        new_peak = tl.maximum(peak, tl.max(logits, axis=1))
        # A query that has seen nothing yet has a peak of -inf, and -inf - -inf is NaN: subtract 0 instead.
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        kept = tl.exp2(peak - base)
        weights = tl.exp2(logits - base[:, None])
        total = total * kept + tl.sum(weights, axis=1)
        mixed = tl.dot(weights.to(v.dtype), v, mixed * kept[:, None], input_precision="ieee")
        peak = new_peak

    # Rows of the tile outside the chunk may have seen nothing; they are not stored.
    mixed = mixed / tl.where(in_chunk, total, 1.0)[:, None]
    out_place = (token * heads + head)[:, None] * HEAD_DIM + dim[None, :]
    tl.store(out + out_place, mixed.to(out.dtype.element_ty), mask=in_chunk[:, None] & in_head[None, :])
