"""Tile sizes and KV splits: a table by head size, and nothing else decides them.

Not the batch: a row's result would then depend on the other rows, since another tile or split adds the same
numbers in another order. And not a tuner at run time: switching to a model would wait for a compiler.

The numbers were measured on an H200, against neighbours of each (docs/results/gpu.md); other devices take the
same rows, and they have not been measured there. What explains them:

- Decoding is bound by memory: while one tile is computed, the next is in flight, in each of the three or more
  programs that fit on an SM. A third stage, which would also read the block table ahead, gained nothing.
- A split is short enough that a few rows of a small model fill the device, and long enough that its fp32
  partial result (`4 * head_dim` bytes per query head) is small compared with the keys and values it read.
- Prefill is bound by the tensor cores, and by how many programs fit on an SM: tiles that leave room for two.
- Tiles fit in 99 KB of shared memory, as sm_86, sm_89 and sm_120 have no more for a block, unless they are
for
  Hopper alone.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

LARGEST_HEAD = 256
"""The largest head size that attention accepts."""

LARGEST_GROUP = 64
"""The largest number of query heads that may share a KV head."""


class GpuArchitecture(enum.IntEnum):
    """Families of devices; the value is the compute capability that is compiled for in the checks."""

    SM_80 = 80
    SM_90 = 90
    SM_100 = 100

    @staticmethod
    def of(capability: int) -> GpuArchitecture:
        """The family of a compute capability (major * 10 + minor); `ValueError` for one that is not
        served."""
        match capability // 10:
            case 8 | 12:
                return GpuArchitecture.SM_80
            case 9:
                return GpuArchitecture.SM_90
            case 10 | 11:
                return GpuArchitecture.SM_100
            case _:
                raise ValueError(f"the kernels need compute capability 8.0 or newer, got {capability / 10}")


@dataclass(frozen=True, slots=True)
class DecodeTile:
    """`tokens` KV tokens per iteration, `split` KV tokens per program."""

    tokens: int
    split: int
    warps: int
    stages: int

    def __post_init__(self) -> None:
        if self.split % self.tokens:
            raise ValueError(f"a split is a whole number of tiles, got {self}")


@dataclass(frozen=True, slots=True)
class PrefillTile:
    """`queries` query tokens per program, `tokens` KV tokens per iteration."""

    queries: int
    tokens: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class SampleTile:
    """`vocabulary` logits per program in the parallel passes; `search` logits per iteration of the
    threshold search."""

    vocabulary: int = 4096
    search: int = 8192
    warps: int = 4
    search_warps: int = 16


@dataclass(frozen=True, slots=True)
class StepTiles:
    """How a model's step is cut: `rows` of every pass that is not one long cell of a prompt, and its kernels'
    tiles.

    64 rows: up to there a product with 16-bit weights is bound by reading the weights on every device in the
    table (an H100 does 295 operations for each byte that it reads), so that padding a batch of one costs next
    to nothing.
    """

    decode: DecodeTile
    prefill: PrefillTile
    sample: SampleTile = SampleTile()
    rows: int = 64


def padded(extent: int) -> int:
    """The power of two to which a tile axis of `extent` elements is padded."""
    return 1 << (extent - 1).bit_length()


def group_tile(group: int) -> int:
    """Rows of the decode tile for `group` query heads per KV head: tensor cores want at least 16."""
    if group > LARGEST_GROUP:
        raise ValueError(f"at most {LARGEST_GROUP} query heads share a KV head, got {group}")
    return max(16, padded(group))


_DECODE = {
    64: DecodeTile(tokens=128, split=256, warps=4, stages=2),
    128: DecodeTile(tokens=64, split=256, warps=4, stages=2),
    256: DecodeTile(tokens=32, split=256, warps=4, stages=2),
}

_PREFILL = {
    64: PrefillTile(queries=64, tokens=64, warps=4, stages=3),
    128: PrefillTile(queries=128, tokens=32, warps=8, stages=3),
    256: PrefillTile(queries=64, tokens=32, warps=8, stages=3),
}

_PREFILL_ON_HOPPER = {
    64: PrefillTile(queries=64, tokens=128, warps=4, stages=3),
    128: PrefillTile(queries=64, tokens=64, warps=4, stages=3),
    256: PrefillTile(queries=64, tokens=64, warps=8, stages=3),
}
"""1.1 to 1.4 times as fast there as the rows above. They spill on sm_80, or take more memory than it has."""


def decode_tile(capability: int, head_dim: int) -> DecodeTile:
    """The tile of `paged_decode`. Raises `ValueError` for a device or a head size that the kernels do not
    serve."""
    GpuArchitecture.of(capability)
    return _DECODE[_head_class(head_dim)]


def prefill_tile(capability: int, head_dim: int) -> PrefillTile:
    """The tile of `paged_prefill`. Raises `ValueError` for a device or a head size that the kernels do not
    serve."""
    hopper = GpuArchitecture.of(capability) is GpuArchitecture.SM_90
    return (_PREFILL_ON_HOPPER if hopper else _PREFILL)[_head_class(head_dim)]


def step_tiles(capability: int, head_dim: int) -> StepTiles:
    """The tiles of a step. Raises `ValueError` for a device or a head size that the kernels do not serve."""
    return StepTiles(decode_tile(capability, head_dim), prefill_tile(capability, head_dim))


def _head_class(head_dim: int) -> int:
    """Head sizes between two powers of two are padded to the larger (80, 96 and 112 run as 128)."""
    size = max(64, padded(head_dim))
    if size > LARGEST_HEAD:
        raise ValueError(f"head sizes go up to {LARGEST_HEAD}, got {head_dim}")
    return size
