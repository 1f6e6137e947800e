"""Where the sections of `benchmarks.gpu` run: a GPU, or Triton's interpreter on the CPU with shapes to match its pace."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tokenmux.kernels.tiles import (
    DecodeTile,
    PrefillTile,
    SampleTile,
    StepTiles,
    decode_tile,
    prefill_tile,
    step_tiles,
)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to check or to time. `run` gives its figures, or raises."""

    name: str
    run: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Place:
    """A device and how kernels are cut for it. `capability` is 0 in the interpreter, where no time means anything."""

    device: str
    capability: int
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def here(cls, *, interpreted: bool) -> "Place":
        if interpreted:
            # The interpreter computes wrongly on bfloat16.
            return cls("cpu", 0, (torch.float32, torch.float16))
        major, minor = torch.cuda.get_device_capability()
        return cls("cuda", 10 * major + minor, (torch.bfloat16, torch.float16))

    @property
    def interpreted(self) -> bool:
        return self.capability == 0

    def decode_tile(self, head_dim: int) -> DecodeTile:
        if self.interpreted:
            return DecodeTile(tokens=16, split=32, warps=4, stages=1)
        return decode_tile(self.capability, head_dim)

    def prefill_tile(self, head_dim: int) -> PrefillTile:
        if self.interpreted:
            return PrefillTile(queries=16, tokens=32, warps=4, stages=1)
        return prefill_tile(self.capability, head_dim)

    @property
    def sample_tile(self) -> SampleTile:
        return SampleTile(vocabulary=64, search=128) if self.interpreted else SampleTile()

    def step_tiles(self, head_dim: int) -> StepTiles:
        if self.interpreted:
            return StepTiles(
                self.decode_tile(head_dim),
                self.prefill_tile(head_dim),
                SampleTile(vocabulary=512, search=512),
                rows=8,
            )
        return step_tiles(self.capability, head_dim)

    def seconds(self, run: Callable[[], object]) -> dict[str, float]:
        """The time of `run` on the device as median and 20th and 80th percentile, with a cold L2 cache; once when interpreted."""
        if self.interpreted:
            began = time.perf_counter()
            run()
            spent = time.perf_counter() - began
            return {"s": spent, "s_p20": spent, "s_p80": spent}
        from triton.testing import do_bench

        middle, low, high = do_bench(run, warmup=15, rep=60, quantiles=[0.5, 0.2, 0.8])
        return {"s": middle / 1e3, "s_p20": low / 1e3, "s_p80": high / 1e3}

    def settle(self) -> None:
        """Wait until the device has done everything."""
        if not self.interpreted:
            torch.cuda.synchronize()
