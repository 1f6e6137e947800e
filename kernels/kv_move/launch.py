"""Host side of `kv_move`: one launch for any number of blocks; the device code is `block_copy`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenmux.kernels.block_copy import launch as block_copy

if TYPE_CHECKING:
    import torch

    from tokenmux.kernels.layout import KVLayout


def kv_move(arena: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor, *, layout: KVLayout) -> None:
    """Copies blocks within `arena`; `sources` and `targets` are int64 offsets on its device.

    The offsets are not looked at here (that would wait for the device): that none overlap, as `reference.py`
    demands, is for `check_apart` where they are made. Raises `ValueError` if their numbers differ.
    """
    if sources.shape != targets.shape:
        raise ValueError(f"{sources.numel()} sources for {targets.numel()} targets")
    block_copy.launch(
        arena,
        arena,
        layout.block_elements,
        sources.numel(),
        source_offsets=sources,
        target_offsets=targets,
    )
