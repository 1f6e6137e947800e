"""Host side of whole-block copies: the compiled forms and their launch."""

from __future__ import annotations

from typing import Any

import torch

from tokenmux.kernels.block_copy import kernel
from tokenmux.kernels.variant import Kind, Variant

CHUNK = 8192
"""Elements a program: with 8 warps that is four independent 16-byte loads in flight for every thread in 16
bits."""


def variant(dtype: torch.dtype, *, gather: bool, scatter: bool) -> Variant:
    """The compiled form that reads scattered blocks if `gather` and writes scattered blocks if `scatter`."""
    kinds: dict[str, Kind] = {"source": dtype, "target": dtype, "block_16": int, "blocks": int}
    constants: dict[str, Any] = {"CHUNK": CHUNK}
    for name, used in (("source_offsets", gather), ("target_offsets", scatter)):
        if used:
            kinds[name] = torch.int64
        else:
            constants[name] = None
    return Variant(kernel.copy_blocks, kinds, constants, unaligned=kernel.UNALIGNED, warps=8)


def launch(
    source: torch.Tensor,
    target: torch.Tensor,
    block_elements: int,
    blocks: int,
    *,
    source_offsets: torch.Tensor | None = None,
    target_offsets: torch.Tensor | None = None,
    programs: int | None = None,
) -> None:
    """Copies `blocks` blocks in one launch of at most `programs` programs; without a limit, one for each
    chunk."""
    offsets = {"source_offsets": source_offsets, "target_offsets": target_offsets}
    pieces = blocks * -(-block_elements // CHUNK)
    variant(source.dtype, gather=source_offsets is not None, scatter=target_offsets is not None).launch(
        (pieces if programs is None else min(pieces, programs),),
        source=source,
        target=target,
        block_16=block_elements // 16,
        blocks=blocks,
        **{name: offset for name, offset in offsets.items() if offset is not None},
    )
