"""Device code of `kv_append`: one program per tile of tokens and KV head."""

import triton
import triton.language as tl

from tokenmux.kernels import kinds
from tokenmux.kernels.variant import kernel


@triton.jit
def copy_rows(source, destination, present, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr):
    """Copy the rows to which `source` and `destination` `[row, 1]` point."""
    dim = tl.arange(0, DIM_TILE)[None, :]
    wanted = present & (dim < HEAD_DIM)
    tl.store(destination + dim, tl.load(source + dim, mask=wanted), mask=wanted)


@kernel
def append(
    key: kinds.MODEL,
    value: kinds.MODEL,
    arena: kinds.MODEL,
    slots: kinds.INT64,
    count: kinds.INT32,
    key_token_16: kinds.NUMBER,
    key_head_16: kinds.NUMBER,
    value_token_16: kinds.NUMBER,
    value_head_16: kinds.NUMBER,
    layer: kinds.NUMBER,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TOKEN_TILE: tl.constexpr,
):
    nth = tl.program_id(0).to(tl.int64) * TOKEN_TILE + tl.arange(0, TOKEN_TILE)
    head = tl.program_id(1)
    kv_heads = tl.num_programs(1)
    real = nth < tl.load(count)
    token, present = nth[:, None], real[:, None]

    slot = tl.multiple_of(tl.load(slots + nth, mask=real, other=0), 16)[:, None]
    keys = arena + (layer * 2 * kv_heads + head).to(tl.int64) * (BLOCK_SIZE * HEAD_DIM) + slot
    values = keys + kv_heads.to(tl.int64) * (BLOCK_SIZE * HEAD_DIM)
    new_key = key + token * key_token_16 * 16 + head * key_head_16 * 16
    new_value = value + token * value_token_16 * 16 + head * value_head_16 * 16
    copy_rows(new_value, values, present, HEAD_DIM, DIM_TILE)
    copy_rows(new_key, keys, present, HEAD_DIM, DIM_TILE)
