"""Where the sections of `benchmarks.gpu` run: a GPU, or Triton's interpreter on the CPU with shapes small
enough for it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokenmux.device.cuda.gpu import sum_in_float32
from tokenmux.kernels.tiles import (
    DecodeTile,
    PrefillTile,
    SampleTile,
    StepTiles,
    decode_tile,
    prefill_tile,
    step_tiles,
)

SHORT_S = 1e-3
"""Below this, launches from Python (tens of microseconds each) are a visible part of the time."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to check or to time. `run` returns its figures, or raises; it does not begin with less than
    `seconds` left."""

    name: str
    run: Callable[[], Mapping[str, Any]]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Place:
    """A device and how kernels are cut for it. `capability` is 0 in the interpreter, where times mean
    nothing.

    Items may leave files in the folder `out`.
    """

    device: str
    capability: int
    dtypes: tuple[torch.dtype, ...]
    out: Path

    @classmethod
    def here(cls, *, interpreted: bool, out: Path) -> "Place":
        if interpreted:
            # The interpreter computes wrongly on bfloat16.
            return cls("cpu", 0, (torch.float32, torch.float16), out)
        sum_in_float32()
        major, minor = torch.cuda.get_device_capability()
        return cls("cuda", 10 * major + minor, (torch.bfloat16, torch.float16), out)

    def works(self) -> bool:
        """True if the device still works: after an illegal access it never does again in this process."""
        try:
            self.settle()
        except RuntimeError:
            return False
        return True

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

    def seconds(self, run: Callable[[], object]) -> dict[str, Any]:
        """Seconds of `run` on the device: median, 20th and 80th percentile, with a cold L2 cache. Run once if
        interpreted.

        Short kernels are timed in a captured graph, without launches from Python in between; `how` says
        which.
        """
        taken = self.launched(run)
        if self.interpreted or taken["s"] >= SHORT_S:
            return taken
        try:
            return replayed(run)
        except RuntimeError as error:
            if not self.works():
                raise
            reason = str(error).splitlines()[0][:200]
            return {**taken, "how": f"launched; not captured: {reason}"}

    def launched(self, run: Callable[[], object]) -> dict[str, Any]:
        """Like `seconds`, one launch after another."""
        if self.interpreted:
            began = time.perf_counter()
            run()
            spent = time.perf_counter() - began
            return {"s": spent, "s_p20": spent, "s_p80": spent, "how": "interpreted"}
        from triton.testing import do_bench

        middle, low, high = (ms / 1e3 for ms in do_bench(run, warmup=10, rep=40, quantiles=[0.5, 0.2, 0.8]))
        return {"s": middle, "s_p20": low, "s_p80": high, "how": "launched"}

    def settle(self) -> None:
        """Wait until the device has done everything."""
        if not self.interpreted:
            torch.cuda.synchronize()


REPEATS, REPLAYS = 20, 15


def replayed(run: Callable[[], object]) -> dict[str, Any]:
    """Seconds of `run`, from replaying a graph that contains it REPEATS times, each after a write that
    empties the L2 cache.

    A graph of those writes alone is replayed as well, and its time subtracted.
    """
    filler = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")

    def graph_of(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(REPEATS):
                work()
        return graph

    def both() -> None:
        filler.zero_()
        run()

    whole, empty = graph_of(both), graph_of(filler.zero_)

    def seconds_of(graph: torch.cuda.CUDAGraph) -> float:
        began = torch.cuda.Event(enable_timing=True)
        ended = torch.cuda.Event(enable_timing=True)
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1e3 / REPEATS

    seconds_of(whole), seconds_of(empty)
    taken = sorted(max(seconds_of(whole) - seconds_of(empty), 1e-9) for _ in range(REPLAYS))
    return {
        "s": taken[REPLAYS // 2],
        "s_p20": taken[REPLAYS // 5],
        "s_p80": taken[REPLAYS * 4 // 5],
        "how": "replayed",
    }
