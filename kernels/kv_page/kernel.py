"""Device code of paging: blocks unchanged, and in int8.

Either side may be device memory or page-locked host memory, which the device reads and writes at its mapped
address. A program takes pieces of blocks, one after another, until none is left. In int8 a piece is ROWS rows
of `head_dim` numbers: a row is read once, and its scale and codes come from registers.
"""

import triton
import triton.language as tl

from tokenmux.kernels import kinds
from tokenmux.kernels.variant import kernel


@kernel
def copy_blocks(
    target: kinds.BYTES,
    source: kinds.BYTES,
    target_offsets: kinds.INT64,
    source_offsets: kinds.INT64,
    block_16: kinds.NUMBER,
    blocks: kinds.NUMBER,
    CHUNK: tl.constexpr,
):
    """Copy `blocks` blocks of 16 * block_16 bytes."""
    size = block_16 * 16
    chunks = tl.cdiv(size, CHUNK)
    for piece in range(tl.program_id(0), blocks * chunks, tl.num_programs(0)):
        block = piece // chunks
        place = (piece % chunks) * CHUNK + tl.arange(0, CHUNK)
        read_at = tl.multiple_of(tl.load(source_offsets + block), 16)
        write_at = tl.multiple_of(tl.load(target_offsets + block), 16)
        inside = place < size
        tl.store(target + write_at + place, tl.load(source + read_at + place, mask=inside), mask=inside)


@triton.jit
def record_places(records, block, block_rows, HEAD_DIM: tl.constexpr):
    """Where the codes and the scales of a block's record begin, in elements of each."""
    codes_at = tl.multiple_of(tl.load(records + block), 16)
    return codes_at, (codes_at + block_rows * HEAD_DIM) // 4


@kernel
def quantise(
    arena: kinds.MODEL,
    offsets: kinds.INT64,
    codes: kinds.INT8,
    scales: kinds.FLOAT32,
    records: kinds.INT64,
    block_rows: kinds.NUMBER,
    blocks: kinds.NUMBER,
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
        codes_at, scales_at = record_places(records, block, block_rows, HEAD_DIM)
        tl.store(codes + codes_at + row[:, None] * HEAD_DIM + dim, code.to(tl.int8), mask=inside)
        tl.store(scales + scales_at + row, scale, mask=row < block_rows)


@kernel
def dequantise(
    arena: kinds.MODEL,
    offsets: kinds.INT64,
    codes: kinds.INT8,
    scales: kinds.FLOAT32,
    records: kinds.INT64,
    block_rows: kinds.NUMBER,
    blocks: kinds.NUMBER,
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
        codes_at, scales_at = record_places(records, block, block_rows, HEAD_DIM)
        code = tl.load(codes + codes_at + row[:, None] * HEAD_DIM + dim, mask=inside, other=0).to(tl.float32)
        scale = tl.load(scales + scales_at + row, mask=row < block_rows, other=0.0)
        offset = tl.multiple_of(tl.load(offsets + block), 16)
        x = (code * scale[:, None]).to(arena.dtype.element_ty)
        tl.store(arena + offset + row[:, None] * HEAD_DIM + dim, x, mask=inside)
