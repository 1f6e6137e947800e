"""Device code of whole-block copies: programs that take chunks of blocks, one after the other, until none is
left.

    pack     scattered blocks ---> consecutive blocks of the staging buffer
    unpack   consecutive blocks -> scattered blocks
    move     scattered blocks ---> scattered blocks        in the device, or paging to and from the host

Either side may be device memory or pinned host memory, which the device reads and writes at its mapped
address.
"""

import triton
import triton.language as tl

UNALIGNED = ("source_offsets", "target_offsets")


@triton.jit(do_not_specialize=["block_16", "blocks"], do_not_specialize_on_alignment=UNALIGNED)
def copy_blocks(source, target, source_offsets, target_offsets, block_16, blocks, CHUNK: tl.constexpr):
    """Copies `blocks` blocks of 16 * block_16 elements; a side without offsets holds its blocks one after
    the other."""
    elements = block_16 * 16
    chunks = tl.cdiv(elements, CHUNK)
    for piece in range(tl.program_id(0), blocks * chunks, tl.num_programs(0)):
        block = piece // chunks
        place = (piece % chunks) * CHUNK + tl.arange(0, CHUNK)
        if source_offsets is None:
            read_at = block.to(tl.int64) * elements
        else:
            read_at = tl.multiple_of(tl.load(source_offsets + block), 16)
        if target_offsets is None:
            write_at = block.to(tl.int64) * elements
        else:
            write_at = tl.multiple_of(tl.load(target_offsets + block), 16)
        inside = place < elements
        tl.store(target + write_at + place, tl.load(source + read_at + place, mask=inside), mask=inside)
