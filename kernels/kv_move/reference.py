"""What `kv_move` computes, in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tokenmux.kernels.layout import KVLayout


def kv_move(arena: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor, *, layout: KVLayout) -> None:
    """Copies the block at `sources[i]` to `targets[i]`, all at once and in no order.

    Hence no target may overlap a source or another target: `ValueError`. One source may serve several targets
    (copy-on-write of a shared prefix). A compaction that slides blocks into their neighbours takes several
    calls.
    """
    check_apart(sources.tolist(), targets.tolist(), layout.block_elements)
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        layout.block(arena, target).copy_(layout.block(arena, source))


def check_apart(sources: list[int], targets: list[int], block_elements: int) -> None:
    """Raises `ValueError` if a target overlaps a source or another target. Needs the offsets on the host."""
    ends = sorted([(offset, True) for offset in targets] + [(offset, False) for offset in set(sources)])
    reach, reach_of_targets = -1, -1
    for offset, is_target in ends:
        if offset < (reach if is_target else reach_of_targets):
            raise ValueError(f"the block written or read at {offset} overlaps a block that is written")
        reach = max(reach, offset + block_elements)
        if is_target:
            reach_of_targets = offset + block_elements
