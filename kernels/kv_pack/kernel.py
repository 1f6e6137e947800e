"""Device code of the int8 path; the exact path is `block_copy`.

A program takes pieces of ROWS rows of `head_dim` numbers of one block, one after the other, until none is
left: it reads a row once, and its scale and codes come from registers.

Without `records`, codes and scales lie one block after the other, each in memory of its own. `records` says
where a block's record begins, in bytes from where codes and scales both start: its codes, then its scales.
"""

import triton
import triton.language as tl

UNALIGNED = ("offsets", "scales", "records")


@triton.jit
def _places(records, block, block_rows, HEAD_DIM: tl.constexpr):
    """Where the block's codes and its scales begin, in elements of each."""
    if records is None:
        scales_at = block.to(tl.int64) * block_rows
        codes_at = scales_at * HEAD_DIM
    else:
        codes_at = tl.multiple_of(tl.load(records + block), 16)
        scales_at = (codes_at + block_rows * HEAD_DIM) // 4
    return codes_at, scales_at


@triton.jit(do_not_specialize=["block_rows", "blocks"], do_not_specialize_on_alignment=UNALIGNED)
def quantise(
    arena,
    offsets,
    codes,
    scales,
    records,
    block_rows,
    blocks,
    SMALLEST_SCALE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    ROWS: tl.constexpr,
):
    pieces = tl.cdiv(block_rows, ROWS)
    dim = tl.arange(0, DIM_TILE)[None, :]
    for piece in range(tl.program_id(0), blocks * pieces, tl.num_programs(0)):
        block = piece // pieces
        row = (piece % pieces) * ROWS + tl.arange(0, ROWS)
        inside = (row < block_rows)[:, None] & (dim < HEAD_DIM)
        offset = tl.multiple_of(tl.load(offsets + block), 16)
        x = tl.load(arena + offset + row[:, None] * HEAD_DIM + dim, mask=inside, other=0.0).to(tl.float32)
        scale = tl.maximum(tl.max(tl.abs(x), axis=1) / 127.0, SMALLEST_SCALE)
        code = tl.floor(x / scale[:, None] + 0.5)
        code = tl.minimum(tl.maximum(code, -127.0), 127.0)
        codes_at, scales_at = _places(records, block, block_rows, HEAD_DIM)
        tl.store(codes + codes_at + row[:, None] * HEAD_DIM + dim, code.to(tl.int8), mask=inside)
        tl.store(scales + scales_at + row, scale, mask=row < block_rows)


@triton.jit(do_not_specialize=["block_rows", "blocks"], do_not_specialize_on_alignment=UNALIGNED)
def dequantise(
    arena,
    offsets,
    codes,
    scales,
    records,
    block_rows,
    blocks,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    ROWS: tl.constexpr,
):
    pieces = tl.cdiv(block_rows, ROWS)
    dim = tl.arange(0, DIM_TILE)[None, :]
    for piece in range(tl.program_id(0), blocks * pieces, tl.num_programs(0)):
        block = piece // pieces
        row = (piece % pieces) * ROWS + tl.arange(0, ROWS)
        inside = (row < block_rows)[:, None] & (dim < HEAD_DIM)
        codes_at, scales_at = _places(records, block, block_rows, HEAD_DIM)
        code = tl.load(codes + codes_at + row[:, None] * HEAD_DIM + dim, mask=inside, other=0).to(tl.float32)
        scale = tl.load(scales + scales_at + row, mask=row < block_rows, other=0.0)
        offset = tl.multiple_of(tl.load(offsets + block), 16)
        x = (code * scale[:, None]).to(arena.dtype.element_ty)
        tl.store(arena + offset + row[:, None] * HEAD_DIM + dim, x, mask=inside)
