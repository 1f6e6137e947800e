"""Host side of `kv_page`, `kv_pack` and `kv_unpack`: page out and in with one launch for any number of
blocks.

Staging buffers are device memory or pinned host memory. When to use the copy engines instead: `choice.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tokenmux.kernels.block_copy import launch as block_copy
from tokenmux.kernels.kv_pack import kernel
from tokenmux.kernels.kv_pack.quantised import record_bytes
from tokenmux.kernels.kv_pack.reference import SMALLEST_SCALE
from tokenmux.kernels.layout import OFFSET_ALIGNMENT
from tokenmux.kernels.tiles import padded
from tokenmux.kernels.variant import Kind, Variant

if TYPE_CHECKING:
    from tokenmux.kernels.kv_pack.quantised import Quantised
    from tokenmux.kernels.layout import KVLayout

ELEMENTS = 4096
"""Elements a program of the int8 path: four 16-byte loads a thread with 4 warps, as whole rows."""


PAGING_PROGRAMS = 16
"""Programs of a launch that reads or writes host memory: each has 8 KiB under way, and 66 KB (1.2 us at 55
GB/s) fill the bus.

A grid of one program for each chunk would take all thread slots of a GPU for programs that wait for the
bus (2,048 of them for 16 MiB, where an H100 holds 1,056), and no program of the step beside it could start
until they were done."""


def kv_page(target: torch.Tensor, source: torch.Tensor, offsets: torch.Tensor, *, block_bytes: int) -> None:
    """Copies blocks that are scattered on both sides, of any model: the tensors are `uint8`, one of them
    often pinned host memory.

    `offsets` `[2, block]` (int64, on the device) are bytes: where each block goes in `target`, where it comes
    from in `source`. They are not looked at here, as that would wait for the device.
    """
    if block_bytes % OFFSET_ALIGNMENT:
        raise ValueError(f"blocks are multiples of {OFFSET_ALIGNMENT} bytes, got {block_bytes}")
    block_copy.launch(
        source,
        target,
        block_bytes,
        offsets.shape[1],
        source_offsets=offsets[1],
        target_offsets=offsets[0],
        programs=PAGING_PROGRAMS,
    )


def kv_pack(arena: torch.Tensor, offsets: torch.Tensor, staging: torch.Tensor, *, layout: KVLayout) -> None:
    """Copies the blocks at `offsets` (int64, on the device) to the rows of `staging` `[block, element]`."""
    _check(staging, offsets, layout)
    block_copy.launch(
        arena,
        staging,
        layout.block_elements,
        offsets.numel(),
        source_offsets=offsets,
        programs=_programs(staging),
    )


def kv_unpack(arena: torch.Tensor, offsets: torch.Tensor, staging: torch.Tensor, *, layout: KVLayout) -> None:
    """Copies the rows of `staging` `[block, element]` to the blocks at `offsets` (int64, on the device)."""
    _check(staging, offsets, layout)
    block_copy.launch(
        staging,
        arena,
        layout.block_elements,
        offsets.numel(),
        target_offsets=offsets,
        programs=_programs(staging),
    )


def kv_pack_int8(arena: torch.Tensor, offsets: torch.Tensor, staging: Quantised, *, layout: KVLayout) -> None:
    """Like `kv_pack`, in int8; see `reference.py` for the format and `quantised.py` for the error."""
    _check_quantised(staging, offsets, layout)
    variant = quantise_variant(arena.dtype, layout.head_dim)
    _launch_int8(variant, arena, offsets, staging.codes, staging.scales, None, layout)


def kv_unpack_int8(
    arena: torch.Tensor, offsets: torch.Tensor, staging: Quantised, *, layout: KVLayout
) -> None:
    """Like `kv_unpack`, from int8."""
    _check_quantised(staging, offsets, layout)
    variant = dequantise_variant(arena.dtype, layout.head_dim)
    _launch_int8(variant, arena, offsets, staging.codes, staging.scales, None, layout)


def kv_page_out_int8(
    host: torch.Tensor, arena: torch.Tensor, offsets: torch.Tensor, *, layout: KVLayout
) -> None:
    """Quantises blocks of the arena to records anywhere in `host`, which is `uint8` and often pinned host
    memory.

    `offsets` `[2, block]` (int64, on the device): where each record goes in `host`, in bytes, and where its
    block comes from in `arena`, in elements. A record is `quantised.record_bytes` long.
    """
    variant = quantise_variant(arena.dtype, layout.head_dim, records=True)
    _launch_records(variant, arena, offsets[1], host, offsets[0], layout)


def kv_page_in_int8(
    arena: torch.Tensor, host: torch.Tensor, offsets: torch.Tensor, *, layout: KVLayout
) -> None:
    """Writes blocks of the arena from records; `offsets` are where each block goes, in elements, and its
    record, in bytes."""
    variant = dequantise_variant(arena.dtype, layout.head_dim, records=True)
    _launch_records(variant, arena, offsets[0], host, offsets[1], layout)


def quantise_variant(dtype: torch.dtype, head_dim: int, *, records: bool = False) -> Variant:
    """The compiled form of packing to int8, or of paging out to records."""
    constants = {"SMALLEST_SCALE": SMALLEST_SCALE}
    return _int8_variant(kernel.quantise, dtype, head_dim, constants, records=records)


def dequantise_variant(dtype: torch.dtype, head_dim: int, *, records: bool = False) -> Variant:
    """The compiled form of unpacking from int8, or of paging in from records."""
    return _int8_variant(kernel.dequantise, dtype, head_dim, {}, records=records)


def _int8_variant(
    code: Any, dtype: torch.dtype, head_dim: int, constants: dict[str, Any], *, records: bool
) -> Variant:
    kinds: dict[str, Kind] = {
        "arena": dtype,
        "offsets": torch.int64,
        "codes": torch.int8,
        "scales": torch.float32,
        "block_rows": int,
        "blocks": int,
    }
    constants = {**constants, **_tile(head_dim)}
    if records:
        kinds["records"] = torch.int64
    else:
        constants["records"] = None
    return Variant(code, kinds, constants, unaligned=kernel.UNALIGNED, warps=4)


def _tile(head_dim: int) -> dict[str, int]:
    return {"HEAD_DIM": head_dim, "DIM_TILE": padded(head_dim), "ROWS": ELEMENTS // padded(head_dim)}


def _launch_records(
    variant: Variant,
    arena: torch.Tensor,
    blocks: torch.Tensor,
    host: torch.Tensor,
    records: torch.Tensor,
    layout: KVLayout,
) -> None:
    if record_bytes(layout) % OFFSET_ALIGNMENT:
        raise ValueError(f"records are multiples of {OFFSET_ALIGNMENT} bytes, got {record_bytes(layout)}")
    scales = host[: host.numel() // 4 * 4].view(torch.float32)
    _launch_int8(variant, arena, blocks, host.view(torch.int8), scales, records, layout)


def _launch_int8(
    variant: Variant,
    arena: torch.Tensor,
    offsets: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    records: torch.Tensor | None,
    layout: KVLayout,
) -> None:
    rows, blocks = layout.block_elements // layout.head_dim, offsets.numel()
    pieces, programs = blocks * -(-rows // variant.constants["ROWS"]), _programs(codes)
    variant.launch(
        (pieces if programs is None else min(pieces, programs),),
        arena=arena,
        offsets=offsets,
        codes=codes,
        scales=scales,
        block_rows=rows,
        blocks=blocks,
        **({} if records is None else {"records": records}),
    )


def _programs(staging: torch.Tensor) -> int | None:
    """How many programs a launch may have whose other side is `staging`: no limit within the device."""
    return PAGING_PROGRAMS if staging.device.type == "cpu" else None


def _check_quantised(staging: Quantised, offsets: torch.Tensor, layout: KVLayout) -> None:
    _check(staging.codes, offsets, layout)
    rows = layout.block_elements // layout.head_dim
    if not staging.scales.is_contiguous() or staging.scales.shape[1] != rows:
        raise ValueError(f"scales are contiguous, {rows} a block")


def _check(staging: torch.Tensor, offsets: torch.Tensor, layout: KVLayout) -> None:
    """Raises `ValueError` unless `staging` has a contiguous row of one block's elements for each offset."""
    if not staging.is_contiguous() or staging.shape[1] != layout.block_elements:
        raise ValueError(f"staging is contiguous, {layout.block_elements} elements a block")
    if staging.shape[0] < offsets.numel():
        raise ValueError(f"staging holds {staging.shape[0]} blocks, need {offsets.numel()}")
