"""Host side of paging: any number of blocks in one launch. `choice.py` says when to use the copy engines
instead."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

from tokenmux.kernels.kinds import MODEL
from tokenmux.kernels.kv_page import kernel
from tokenmux.kernels.kv_page.quantised import record_bytes
from tokenmux.kernels.kv_page.reference import SMALLEST_SCALE
from tokenmux.kernels.layout import OFFSET_ALIGNMENT
from tokenmux.kernels.tiles import padded
from tokenmux.kernels.variant import Variant

if TYPE_CHECKING:
    from tokenmux.kernels.layout import KVLayout

CHUNK = 8192
"""Bytes that a program copies at a time: two independent 16-byte loads in flight for each of its 256
threads."""

PIECE_NUMBERS = 4096
"""Numbers that a program takes at a time in int8: four 16-byte loads per thread with 4 warps, in whole
rows."""

PROGRAMS = 16
"""Programs per launch. Each has 8 KiB in flight, and 66 KB (1.2 us at 55 GB/s) fill the bus.

Measured on an H200, GB/s into the device and out: 4 programs 22 and 52, 8 programs 42 and 52, 16 programs 51
and 52, 32 programs 51 and 52. A grid of one program per chunk reaches no more, and fills all thread slots of
the GPU with programs that wait for the bus, so that no program of the step at the same time can start until
they are done.
"""


@cache
def copy_variant() -> Variant:
    """The compiled form of paging blocks unchanged: one for all models."""
    return kernel.copy_blocks.variant({}, {"CHUNK": CHUNK}, warps=8)


@cache
def quantise_variant(dtype: torch.dtype, head_dim: int) -> Variant:
    """The compiled form of paging out to records in int8."""
    constants = {"SMALLEST_SCALE": SMALLEST_SCALE, **_tile(head_dim)}
    return kernel.quantise.variant({MODEL: dtype}, constants, warps=4)


@cache
def dequantise_variant(dtype: torch.dtype, head_dim: int) -> Variant:
    """The compiled form of paging in from records in int8."""
    return kernel.dequantise.variant({MODEL: dtype}, _tile(head_dim), warps=4)


def kv_page(
    target: torch.Tensor,
    source: torch.Tensor,
    offsets: torch.Tensor,
    *,
    block_bytes: int,
    programs: int | None = PROGRAMS,
) -> None:
    """Copy blocks that are scattered on both sides, of any model. The tensors are `uint8`, one of them often
    page-locked memory.

    `offsets` `[2, block]` (int64, on the device) are in bytes: each block's place in `target` and in
    `source`. They are not checked here, since that would wait for the device. A launch has at most `programs`
    programs; None means one per chunk.
    """
    if block_bytes % OFFSET_ALIGNMENT:
        raise ValueError(f"blocks are multiples of {OFFSET_ALIGNMENT} bytes, got {block_bytes}")
    blocks = offsets.shape[1]
    pieces = blocks * -(-block_bytes // CHUNK)
    copy_variant().launch(
        (pieces if programs is None else min(pieces, programs), 1, 1),
        target=target,
        source=source,
        target_offsets=offsets[0],
        source_offsets=offsets[1],
        block_16=block_bytes // 16,
        blocks=blocks,
    )


def kv_page_out_int8(
    host: torch.Tensor, arena: torch.Tensor, offsets: torch.Tensor, *, layout: KVLayout
) -> None:
    """Quantise blocks of the arena to records anywhere in `host`, which is `uint8` and often page-locked
    memory.

    `offsets` `[2, block]` (int64, on the device) are each record's place in `host`, in bytes, and its block's
    place in `arena`, in elements. A record is `quantised.record_bytes` long.
    """
    variant = quantise_variant(arena.dtype, layout.head_dim)
    _launch_records(variant, arena, offsets[1], host, offsets[0], layout)


def kv_page_in_int8(
    arena: torch.Tensor, host: torch.Tensor, offsets: torch.Tensor, *, layout: KVLayout
) -> None:
    """Write blocks of the arena from records. `offsets` are each block's place, in elements, and its
    record's, in bytes."""
    variant = dequantise_variant(arena.dtype, layout.head_dim)
    _launch_records(variant, arena, offsets[0], host, offsets[1], layout)


def _tile(head_dim: int) -> dict[str, int]:
    return {"HEAD_DIM": head_dim, "DIM_TILE": padded(head_dim), "ROWS": PIECE_NUMBERS // padded(head_dim)}


def _launch_records(
    variant: Variant,
    arena: torch.Tensor,
    offsets: torch.Tensor,
    host: torch.Tensor,
    records: torch.Tensor,
    layout: KVLayout,
) -> None:
    if record_bytes(layout) % OFFSET_ALIGNMENT:
        raise ValueError(f"records are multiples of {OFFSET_ALIGNMENT} bytes, got {record_bytes(layout)}")
    rows, blocks = layout.block_elements // layout.head_dim, offsets.numel()
    pieces = blocks * -(-rows // variant.constants["ROWS"])
    variant.launch(
        (min(pieces, PROGRAMS), 1, 1),
        arena=arena,
        offsets=offsets,
        codes=host.view(torch.int8),
        scales=host[: host.numel() // 4 * 4].view(torch.float32),
        records=records,
        block_rows=rows,
        blocks=blocks,
    )
