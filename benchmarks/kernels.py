"""Attention over paged KV on the CPU, compared with torch's own attention over contiguous tensors, one layer
at a time.

Times what a layer of a step does, through the same function that models call: write new keys and values into
their blocks, then attend over the blocks, which are scattered. The floor writes the same rows into contiguous
tensors and attends these with `scaled_dot_product_attention`, as if paging cost nothing. Ours and the floor
alternate, and a ratio is taken within each pair, so that it holds when the machine's speed drifts. Above 1 we
are faster than the floor.

Torch's attention is a poor floor for decoding, with one query per sequence, so decoding is also compared with
one plain copy of its KV.

What a launch of a Triton kernel costs in Python is told as well, on a device that is not there: ours over
Triton's own look-up by every argument. The kernels themselves are timed where there is a GPU: `python -m
benchmarks.gpu`.

    python -m benchmarks.kernels [--quick]
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console

from benchmarks.report import Target, finish, spread, table
from tokenmux.core.facts import KvShape
from tokenmux.kernels.absent import absent_device
from tokenmux.kernels.kv_append import launch as append
from tokenmux.kernels.layout import KVLayout
from tokenmux.models.network.attention import paged_attention, write_kv
from tokenmux.models.network.batch import KvViews, Segment, StepBatch
from tokenmux.models.network.rows import row_rule

DTYPE = torch.bfloat16
BLOCK_SIZE = 16
GRID = 512
SOURCE = "attention over scattered blocks within a tenth of torch's over contiguous tensors, over all cases"
TARGETS = {
    "decode_over_sdpa": Target(SOURCE, at_least=0.9),
    "prefill_over_sdpa": Target(SOURCE, at_least=0.9),
    "launch_over_triton": Target("a launch costs less Python than Triton's own", at_most=0.6),
}


@dataclass(frozen=True, slots=True)
class Heads:
    """Query heads, KV heads and their size, of a published model."""

    name: str
    query: int
    kv: int
    dim: int


SMOLLM2 = Heads("smollm2-135m", 9, 3, 64)
QWEN = Heads("qwen2.5-1.5b", 12, 2, 128)


class Layer(torch.nn.Module):
    """What attention needs of a layer: its number."""

    layer_idx = 0


@dataclass(frozen=True, slots=True)
class Case:
    """A layer's work over blocks and over contiguous tensors, and one plain copy of the KV that it reads
    or writes."""

    name: str
    what: str
    ours: Callable[[], object]
    floor: Callable[[], object]
    copy: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds, measured one after another."""

    ours_s: float
    floor_s: float
    copy_s: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds")
    options = parser.parse_args(arguments)
    cases = make_cases(quick=options.quick)
    with torch.inference_mode():
        check(cases)
        report(cases, measure(cases, 3 if options.quick else 7))


def make_cases(*, quick: bool) -> list[Case]:
    cases = []
    for heads in (SMOLLM2,) if quick else (SMOLLM2, QWEN):
        cases += [
            decode_case(heads, batch, context)
            for batch in ((1, 8) if quick else (1, 8, 32))
            for context in ((128, 1024) if quick else (128, 512, 2048, 4096))
            if batch * context <= 32 * 1024
        ]
        for prefix, chunk in (
            ((0, 128), (512, 128)) if quick else ((0, 64), (0, 512), (512, 512), (3584, 512))
        ):
            cases.append(prefill_case(heads, prefix, chunk))
        cases += [append_case(heads, n) for n in ((8,) if quick else (1, 32, 512))]
    return cases


def decode_case(heads: Heads, batch: int, context: int) -> Case:
    """One row each, at the end of `context` tokens."""
    shape, kv = make_kv(heads, batch, context)
    n_blocks = shape.blocks_for(context)
    tables = torch.randperm(batch * n_blocks).view(batch, n_blocks).tolist()
    segments = [Segment([1], context - 1, 1, blocks) for blocks in tables]
    rule = row_rule(DTYPE)
    step = StepBatch(segments, KvViews.of(kv, shape), dtype=DTYPE, grid=GRID, rule=rule)
    q, k, v = make_rows(heads, rule.padded(batch))
    keys, values = contiguous(kv, tables, context)
    last = torch.tensor([context - 1])

    def floor() -> torch.Tensor:
        keys.index_copy_(2, last, k[0, :, :batch].transpose(0, 1)[:, :, None])
        values.index_copy_(2, last, v[0, :, :batch].transpose(0, 1)[:, :, None])
        rows = q[0, :, :batch].transpose(0, 1)[:, :, None]
        return F.scaled_dot_product_attention(rows, keys, values, enable_gqa=True)[:, :, 0]

    def ours() -> torch.Tensor:
        return paged_attention(Layer(), q, k, v, None, tokenmux_step=step)[0][0, :batch]

    elsewhere = torch.empty_like(kv)
    return Case(f"decode_{heads.name}_{batch}x{context}", "decode", ours, floor, lambda: elsewhere.copy_(kv))


def prefill_case(heads: Heads, prefix: int, chunk: int) -> Case:
    """A chunk of one prompt after its prefix."""
    end = prefix + chunk
    shape, kv = make_kv(heads, 1, end)
    blocks = torch.randperm(shape.blocks_for(end)).tolist()
    segment = Segment([1] * chunk, prefix, end, blocks, draw=False)
    step = StepBatch([segment], KvViews.of(kv, shape), dtype=DTYPE, grid=GRID, rule=row_rule(DTYPE))
    q, k, v = make_rows(heads, chunk)
    keys, values = contiguous(kv, [blocks], end)
    mask = torch.full((chunk, end), -math.inf, dtype=DTYPE).triu(prefix + 1) if prefix else None

    def floor() -> torch.Tensor:
        keys[:, :, prefix:] = k
        values[:, :, prefix:] = v
        attended = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return attended[0].transpose(0, 1)

    def ours() -> torch.Tensor:
        return paged_attention(Layer(), q, k, v, None, tokenmux_step=step)[0][0]

    elsewhere = torch.empty_like(kv)
    return Case(f"prefill_{heads.name}_{prefix}+{chunk}", "prefill", ours, floor, lambda: elsewhere.copy_(kv))


def append_case(heads: Heads, n: int) -> Case:
    """Keys and values of `n` tokens into blocks; the floor writes them side by side."""
    shape, kv = make_kv(heads, 1, n)
    blocks = torch.randperm(shape.blocks_for(n)).tolist()
    segment = Segment([1] * n, 0, n, blocks, draw=False)
    views = KvViews.of(kv, shape)
    lines = StepBatch([segment], views, dtype=DTYPE, grid=n, rule=row_rule(DTYPE)).write_lines
    _, k, v = make_rows(heads, n)
    keys, values = contiguous(kv, [blocks], n)

    def floor() -> torch.Tensor:
        keys.copy_(k)
        values.copy_(v)
        return keys

    def ours() -> torch.Tensor:
        write_kv(views.tokens[0], lines, k, v)
        return kv[:, 0, 0]

    elsewhere = torch.empty_like(kv)
    return Case(f"append_{heads.name}_{n}", "append", ours, floor, lambda: elsewhere.copy_(kv))


def make_kv(heads: Heads, batch: int, context: int) -> tuple[KvShape, torch.Tensor]:
    shape = KvShape(1, heads.kv, heads.dim, DTYPE.itemsize, BLOCK_SIZE)
    n_blocks = batch * shape.blocks_for(context)
    return shape, torch.randn(n_blocks, 1, 2, heads.kv, BLOCK_SIZE, heads.dim).to(DTYPE)


def make_rows(heads: Heads, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values as models pass them: `[1, head, row, dim]`, rows outermost in memory."""
    made = (torch.randn(1, n, count, heads.dim).to(DTYPE) for count in (heads.query, heads.kv, heads.kv))
    q, k, v = (tensor.transpose(1, 2) for tensor in made)
    return q, k, v


def contiguous(kv: torch.Tensor, tables: list[list[int]], context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same keys and values as `[sequence, head, token, dim]`."""
    gathered = kv[torch.tensor(tables), 0].permute(2, 0, 3, 1, 4, 5)
    keys, values = gathered.reshape(2, len(tables), kv.shape[3], -1, kv.shape[5])[
        :, :, :, :context
    ].contiguous()
    return keys, values


def check(cases: Sequence[Case]) -> None:
    """Check that both sides of every ratio compute the same."""
    for case in cases:
        if case.what != "append":
            torch.testing.assert_close(case.ours(), case.floor(), atol=2e-2, rtol=2e-2)


def measure(cases: Sequence[Case], n_rounds: int) -> dict[str, list[Round]]:
    """The rounds of each case. A first round of all warms up and is dropped."""
    taken: dict[str, list[Round]] = {case.name: [] for case in cases}
    with Console(stderr=True).status("measuring") as status:
        for index in range(n_rounds + 1):
            for case in cases:
                status.update(f"round {index} of {n_rounds}, {case.name}")
                spent = Round(seconds(case.ours), seconds(case.floor), seconds(case.copy))
                if index:
                    taken[case.name].append(spent)
    return taken


def seconds(run: Callable[[], object]) -> float:
    """Seconds of one call: the least of three bursts of at least a millisecond, so that clock noise does
    not matter."""
    began = time.perf_counter()
    run()
    n_calls = max(1, math.ceil(1e-3 / (time.perf_counter() - began)))
    bursts = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(n_calls):
            run()
        bursts.append((time.perf_counter() - began) / n_calls)
    return min(bursts)


def launches(n_rounds: int) -> dict[str, float]:
    """The Python of one launch of `kv_append` over that of Triton's own way to launch the same form."""
    layout = KVLayout(32, 8, 128, BLOCK_SIZE)
    key, value = torch.zeros(64, 2, 8, 128, dtype=DTYPE).unbind(1)
    arena = torch.zeros(layout.block_elements, dtype=DTYPE)
    slots, count = torch.zeros(64, dtype=torch.int64), torch.ones(1, dtype=torch.int32)
    form = append.variant(DTYPE, layout.head_dim, BLOCK_SIZE)
    strides = {"key_token_16": 128, "key_head_16": 8, "value_token_16": 128, "value_head_16": 8}

    def ours() -> None:
        append.kv_append(key, value, arena, slots, count, layout=layout, layer=3)

    def tritons() -> None:
        form.kernel.device_code[4, 8, 1](
            key=key, value=value, arena=arena, slots=slots, count=count, layer=3, **strides,
            **form.constants, **form.options,
        )  # fmt: skip

    with absent_device(90):
        ours()
        pairs = [(seconds(ours), seconds(tritons)) for _ in range(n_rounds)]
    return {
        **spread("launch_over_triton", [mine / theirs for mine, theirs in pairs]),
        "launch_us": 1e6 * statistics.median(mine for mine, _ in pairs),
    }


def report(cases: Sequence[Case], taken: dict[str, list[Round]]) -> None:
    metrics = launches(len(taken[cases[0].name]))
    rows: list[list[Any]] = []
    for case in cases:
        rounds = taken[case.name]
        name = f"{case.name}_over_sdpa"
        metrics |= spread(name, [r.floor_s / r.ours_s for r in rounds])
        metrics |= spread(f"{case.name}_over_copy", [r.copy_s / r.ours_s for r in rounds])
        rows.append(
            [
                case.name,
                1e6 * statistics.median(r.ours_s for r in rounds),
                1e6 * statistics.median(r.floor_s for r in rounds),
                f"{metrics[name]:.2f} ({metrics[name + '_p20']:.2f} to {metrics[name + '_p80']:.2f})",
                metrics[f"{case.name}_over_copy"],
            ]
        )
    for what in ("decode", "prefill", "append"):
        ratios = [metrics[f"{case.name}_over_sdpa"] for case in cases if case.what == what]
        metrics[f"{what}_over_sdpa"] = statistics.geometric_mean(ratios)
    table(
        "one layer over scattered blocks, bfloat16",
        ["case", "ours us", "contiguous us", "contiguous over ours (p20 to p80)", "copy over ours"],
        rows,
    )
    finish("kernels", metrics, TARGETS, {"torch": torch.__version__, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
