"""Device code of `paged_decode`: flash decoding over a fixed KV split, then a merge of the splits.

    KV tokens of a row    0          SPLIT        2*SPLIT       length
                          |------------|------------|------------|
    program (row, head, 0)  ########                                  each walks its split in tiles,
    program (row, head, 1)               ########                     and leaves a normalised partial
    program (row, head, 2)                            ########        result with its log-sum-exp
    merge   (row, query head)  <-- weights the partials by their log-sum-exps, in order of position

Splits and tiles lie on a fixed grid from position 0, so the sums of a row never depend on its neighbours, on
the width of the table or on the number of programs. Programs past a row's end (or before its window) end at
once: the host never needs to know a length, and a captured graph serves any lengths that fit its table.
"""

import triton.language as tl

from tokenmux.kernels import kinds
from tokenmux.kernels.softmax import LOG2_E, base2_logits
from tokenmux.kernels.variant import kernel


@kernel
def attend_split(
    query: kinds.MODEL,
    arena: kinds.MODEL,
    table: kinds.INT64,
    lengths: kinds.INT32,
    partials: kinds.PARTIALS,
    log_sums: kinds.FLOAT32,
    query_row_16: kinds.NUMBER,
    query_head_16: kinds.NUMBER,
    table_row: kinds.NUMBER,
    layer: kinds.NUMBER,
    group: kinds.NUMBER,
    window: kinds.NUMBER,
    scale: kinds.FRACTION,
    softcap: kinds.FRACTION,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    TOKEN_TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    kv_heads = tl.num_programs(1)
    splits = tl.num_programs(2)

    length = tl.load(lengths + row)
    oldest = tl.maximum(length - window, 0)
    begin = tl.maximum(split * SPLIT, oldest // TOKEN_TILE * TOKEN_TILE)
    end = tl.minimum((split + 1) * SPLIT, length)
    if begin >= end:
        return

    member = tl.arange(0, GROUP_TILE)
    dim = tl.arange(0, DIM_TILE)
    in_group = member < group
    in_head = dim < HEAD_DIM
    head = kv_head * group + member
    query_place = row * query_row_16 * 16 + head[:, None] * query_head_16 * 16 + dim[None, :]
    q = tl.load(query + query_place, mask=in_group[:, None] & in_head[None, :], other=0.0)

    keys = arena + (layer * 2 * kv_heads + kv_head).to(tl.int64) * (BLOCK_SIZE * HEAD_DIM)
    values = keys + kv_heads.to(tl.int64) * (BLOCK_SIZE * HEAD_DIM)

    peak = tl.full([GROUP_TILE], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_TILE], tl.float32)
    mixed = tl.zeros([GROUP_TILE, DIM_TILE], tl.float32)
    for start in range(begin, end, TOKEN_TILE):
        position = start + tl.arange(0, TOKEN_TILE)
        seen = (position >= oldest) & (position < length)
        offset = tl.load(table + row * table_row + position // BLOCK_SIZE, mask=seen, other=0)
        offset = tl.multiple_of(offset, 16)
        place = (offset + position % BLOCK_SIZE * HEAD_DIM)[:, None] + dim[None, :]
        # Both loads are masked, not just the logits: an unwritten value may be NaN, and 0 * NaN is NaN.
        present = seen[:, None] & in_head[None, :]
        k = tl.load(keys + place, mask=present, other=0.0)
        v = tl.load(values + place, mask=present, other=0.0)

        product = tl.dot(q, tl.trans(k), input_precision="ieee")
        logits = tl.where(seen[None, :], base2_logits(product, scale, softcap, SOFTCAP), float("-inf"))
        new_peak = tl.maximum(peak, tl.max(logits, axis=1))
        kept = tl.exp2(peak - new_peak)
        weights = tl.exp2(logits - new_peak[:, None])
        total = total * kept + tl.sum(weights, axis=1)
        mixed = tl.dot(weights.to(v.dtype), v, mixed * kept[:, None], input_precision="ieee")
        peak = new_peak

    slot = (row * kv_heads * group + head) * splits + split
    tl.store(log_sums + slot, peak + tl.log2(total), mask=in_group)
    tl.store(
        partials + slot[:, None] * HEAD_DIM + dim[None, :],
        mixed / total[:, None],
        mask=in_group[:, None] & in_head[None, :],
    )


@kernel
def merge_splits(
    partials: kinds.PARTIALS,
    log_sums: kinds.FLOAT32,
    lengths: kinds.INT32,
    sinks: kinds.SINKS,
    out: kinds.MODEL,
    splits: kinds.NUMBER,
    window: kinds.NUMBER,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLIT_TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    dim = tl.arange(0, DIM_TILE)
    in_head = dim < HEAD_DIM

    length = tl.load(lengths + row)
    first = tl.maximum(length - window, 0) // SPLIT
    end = tl.cdiv(length, SPLIT)
    slots = (row * heads + head) * splits

    # A sink is one more logit without a value: it starts the sum instead of joining at the end.
    if sinks is None:
        peak = float("-inf")
        total = 0.0
    else:
        peak = tl.load(sinks + head).to(tl.float32) * LOG2_E
        total = 1.0
    mixed = tl.zeros([DIM_TILE], tl.float32)
    for start in range(first, end, SPLIT_TILE):
        split = start + tl.arange(0, SPLIT_TILE)
        live = split < end
        log_sum = tl.load(log_sums + slots + split, mask=live, other=float("-inf"))
        partial = tl.load(
            partials + (slots + split)[:, None] * HEAD_DIM + dim[None, :],
            mask=live[:, None] & in_head[None, :],
            other=0.0,
        )
        new_peak = tl.maximum(peak, tl.max(log_sum, axis=0))
        kept = tl.exp2(peak - new_peak)
        weights = tl.exp2(log_sum - new_peak)
        total = total * kept + tl.sum(weights, axis=0)
        mixed = mixed * kept + tl.sum(partial * weights[:, None], axis=0)
        peak = new_peak

    # A padded slot has length 0 and sums nothing: it yields zero instead of 0 / 0.
    mixed = mixed / tl.where(length > 0, total, 1.0)
    tl.store(out + (row * heads + head) * HEAD_DIM + dim, mixed.to(out.dtype.element_ty), mask=in_head)
