"""Decides if a step uses the Triton kernels, and how it is then cut: by the device on which its KV lies.

Does not import Triton; modules that do are imported when the first step is laid out for the kernels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tokenmux.core.errors import UnsupportedModel
from tokenmux.core.facts import KvShape
from tokenmux.kernels.layout import OFFSET_ALIGNMENT
from tokenmux.kernels.tiles import LARGEST_GROUP, LARGEST_HEAD, StepTiles, step_tiles
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.staging import Staging

if TYPE_CHECKING:
    from tokenmux.models.network.kernel_step import KernelBatch

_REMEDY = "serve the model from a pool of device cpu"


def tiles_for(device: torch.device, shape: KvShape, n_heads: int) -> StepTiles | None:
    """How steps over KV on `device` are cut for the kernels. None if attention runs in torch.

    Raises UnsupportedModel if the kernels do not serve the device, or a model with `n_heads` query heads.
    """
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    check_heads(shape.head_dim, n_heads // shape.n_kv_heads)
    try:
        return step_tiles(10 * major + minor, shape.head_dim)
    except ValueError as error:
        raise UnsupportedModel(f"{error}; {_REMEDY}") from error


def check_heads(head_dim: int, group: int) -> None:
    """Raise UnsupportedModel unless the kernels can read heads of `head_dim`, with `group` query heads per
    KV head."""
    if head_dim % OFFSET_ALIGNMENT or head_dim > LARGEST_HEAD:
        raise UnsupportedModel(
            f"heads of {head_dim} numbers: the GPU kernels take multiples of {OFFSET_ALIGNMENT} up "
            f"to {LARGEST_HEAD}; "
            f"{_REMEDY}"
        )
    if group > LARGEST_GROUP:
        raise UnsupportedModel(
            f"{group} query heads share a KV head: the GPU kernels take up to {LARGEST_GROUP}; {_REMEDY}"
        )


def lay_out(
    segments: Sequence[Segment],
    kv: torch.Tensor,
    shape: KvShape,
    *,
    grid: int,
    tiles: StepTiles,
    staging: Staging,
) -> "KernelBatch":
    """Lay out the step over `kv` for the kernels. Raises UnsupportedModel if Triton is missing."""
    try:
        from tokenmux.models.network.kernel_step import KernelBatch
    except ModuleNotFoundError as error:
        raise UnsupportedModel(
            "steps on a GPU need Triton, which is not installed: pip install 'tokenmux[gpu]'"
        ) from error
    return KernelBatch(segments, kv, shape, grid=grid, tiles=tiles, staging=staging)
