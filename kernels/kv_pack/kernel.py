"""Device code of the int8 path; the exact path is `block_copy`.

A program takes ROWS rows of `head_dim` numbers of one block: it reads them once, and a row's scale and codes come from
registers.
"""

import triton
import triton.language as tl

UNALIGNED = ("offsets", "scales")


@triton.jit(do_not_specialize=["block_rows"], do_not_specialize_on_alignment=UNALIGNED)
def quantise(
    arena,
    offsets,
    codes,
    scales,
    block_rows,
    SMALLEST_SCALE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    ROWS: tl.constexpr,
):
    block = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, DIM_TILE)[None, :]
    inside = (row < block_rows)[:, None] & (dim < HEAD_DIM)
    offset = tl.multiple_of(tl.load(offsets + block), 16)
    x = tl.load(arena + offset + row[:, None] * HEAD_DIM + dim, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), axis=1) / 127.0, SMALLEST_SCALE)
    code = tl.floor(x / scale[:, None] + 0.5)
    code = tl.minimum(tl.maximum(code, -127.0), 127.0)
    staged = block.to(tl.int64) * block_rows + row
    tl.store(codes + staged[:, None] * HEAD_DIM + dim, code.to(tl.int8), mask=inside)
    tl.store(scales + staged, scale, mask=row < block_rows)


@triton.jit(do_not_specialize=["block_rows"], do_not_specialize_on_alignment=UNALIGNED)
def dequantise(
    arena,
    offsets,
    codes,
    scales,
    block_rows,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    ROWS: tl.constexpr,
):
    block = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, DIM_TILE)[None, :]
    inside = (row < block_rows)[:, None] & (dim < HEAD_DIM)
    staged = block.to(tl.int64) * block_rows + row
    code = tl.load(codes + staged[:, None] * HEAD_DIM + dim, mask=inside, other=0).to(tl.float32)
    scale = tl.load(scales + staged, mask=row < block_rows, other=0.0)
    offset = tl.multiple_of(tl.load(offsets + block), 16)
    x = (code * scale[:, None]).to(arena.dtype.element_ty)
    tl.store(arena + offset + row[:, None] * HEAD_DIM + dim, x, mask=inside)
