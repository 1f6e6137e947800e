"""Device code of `kv_append`: one program per tile of tokens and head.

heads 0 .. kv_heads - 1    the key (rotated on request) and the value of that head, into the blocks
heads kv_heads ..          with a rotary embedding: one query head, into the rotated queries
"""

import triton
import triton.language as tl

UNALIGNED = ("slots", "count")


@triton.jit
def copy_rows(source, destination, present, first, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr):
    """Copies the dimensions from `first` on, of rows that `source` and `destination` `[row, 1]` point to."""
    dim = tl.arange(0, DIM_TILE)[None, :]
    wanted = present & (dim >= first) & (dim < HEAD_DIM)
    tl.store(destination + dim, tl.load(source + dim, mask=wanted), mask=wanted)


@triton.jit
def rotate_rows(
    source,
    destination,
    cosine,
    sine,
    present,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    PAIRS: tl.constexpr,
    PAIR_TILE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Copies rows and turns their first 2 * PAIRS dimensions; `cosine` and `sine` `[row, 1]` point to
    angles."""
    pair = tl.arange(0, PAIR_TILE)[None, :]
    turned = present & (pair < PAIRS)
    c = tl.load(cosine + pair, mask=turned)
    s = tl.load(sine + pair, mask=turned)
    if INTERLEAVED:
        # Neighbours are read as one vector and split in registers: two reads with a stride of two would be
        # narrow.
        both = tl.arange(0, 2 * PAIR_TILE)[None, :]
        in_both = present & (both < 2 * PAIRS)
        x = tl.load(source + both, mask=in_both)
        first, second = tl.split(tl.reshape(x, [x.shape[0], PAIR_TILE, 2]))
        first, second = first.to(tl.float32), second.to(tl.float32)
        y = tl.reshape(tl.join(first * c - second * s, second * c + first * s), [x.shape[0], 2 * PAIR_TILE])
        tl.store(destination + both, y.to(x.dtype), mask=in_both)
    else:
        x = tl.load(source + pair, mask=turned)
        first = x.to(tl.float32)
        second = tl.load(source + PAIRS + pair, mask=turned).to(tl.float32)
        tl.store(destination + pair, (first * c - second * s).to(x.dtype), mask=turned)
        tl.store(destination + PAIRS + pair, (second * c + first * s).to(x.dtype), mask=turned)
    if 2 * PAIRS < HEAD_DIM:
        copy_rows(source, destination, present, 2 * PAIRS, HEAD_DIM, DIM_TILE)


@triton.jit(
    do_not_specialize=[
        "key_token_16",
        "key_head_16",
        "value_token_16",
        "value_head_16",
        "query_token_16",
        "query_head_16",
        "kv_heads",
        "query_heads",
        "layer",
    ],
    do_not_specialize_on_alignment=UNALIGNED,
)
def append(
    key,
    value,
    query,
    rotated,
    cosine,
    sine,
    arena,
    slots,
    count,
    key_token_16,
    key_head_16,
    value_token_16,
    value_head_16,
    query_token_16,
    query_head_16,
    kv_heads,
    query_heads,
    layer,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TOKEN_TILE: tl.constexpr,
    PAIRS: tl.constexpr,
    PAIR_TILE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    nth = tl.program_id(0).to(tl.int64) * TOKEN_TILE + tl.arange(0, TOKEN_TILE)
    head = tl.program_id(1)
    real = nth < tl.load(count)
    token, present = nth[:, None], real[:, None]

    if head < kv_heads:
        slot = tl.multiple_of(tl.load(slots + nth, mask=real, other=0), 16)[:, None]
        keys = arena + (layer * 2 * kv_heads + head).to(tl.int64) * (BLOCK_SIZE * HEAD_DIM) + slot
        values = keys + kv_heads.to(tl.int64) * (BLOCK_SIZE * HEAD_DIM)
        new_key = key + token * key_token_16 * 16 + head * key_head_16 * 16
        new_value = value + token * value_token_16 * 16 + head * value_head_16 * 16
        copy_rows(new_value, values, present, 0, HEAD_DIM, DIM_TILE)
        if PAIRS > 0:
            angle = token * PAIRS
            rotate_rows(
                new_key, keys, cosine + angle, sine + angle, present,
                HEAD_DIM, DIM_TILE, PAIRS, PAIR_TILE, INTERLEAVED,
            )  # fmt: skip
        else:
            copy_rows(new_key, keys, present, 0, HEAD_DIM, DIM_TILE)
    elif PAIRS > 0:
        query_head = head - kv_heads
        angle = token * PAIRS
        source = query + token * query_token_16 * 16 + query_head * query_head_16 * 16
        destination = rotated + (token * query_heads + query_head) * HEAD_DIM
        rotate_rows(
            source, destination, cosine + angle, sine + angle, present,
            HEAD_DIM, DIM_TILE, PAIRS, PAIR_TILE, INTERLEAVED,
        )  # fmt: skip
