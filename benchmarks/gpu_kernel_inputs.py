"""What kernels are measured and checked on: heads of published models, scattered KV, sampling rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.gpu_place import Place
from tokenmux.kernels.layout import KVLayout
from tokenmux.kernels.sample.parameters import Sampled, SamplingRows


@dataclass(frozen=True, slots=True)
class Heads:
    """The attention of a published model. Two layers stand for all, since a kernel sees one."""

    name: str
    query: int
    kv: int
    dim: int

    def layout(self, block_size: int = 16, layers: int = 2) -> KVLayout:
        return KVLayout(layers, self.kv, self.dim, block_size)


SMOLLM2 = Heads("smollm2-135m", 9, 3, 64)
LLAMA_8B = Heads("llama-3.1-8b", 32, 8, 128)
QWEN_7B = Heads("qwen2.5-7b", 28, 4, 128)
GEMMA_9B = Heads("gemma2-9b", 16, 8, 256)


@dataclass(frozen=True, slots=True)
class Paged:
    """KV of some sequences in blocks scattered over an arena. Everything that no sequence owns is NaN."""

    layout: KVLayout
    arena: torch.Tensor
    table: torch.Tensor
    lengths: torch.Tensor


def make_paged(layout: KVLayout, lengths: Sequence[int], dtype: torch.dtype, device: str) -> Paged:
    generator = torch.Generator().manual_seed(len(lengths))
    counts = [-(-length // layout.block_size) for length in lengths]
    total = sum(counts)
    arena = torch.full(((total + 1) * layout.block_elements,), math.nan, dtype=dtype, device=device)
    blocks = arena[: total * layout.block_elements].view(
        total, layout.layers, 2, layout.kv_heads, layout.block_size, layout.head_dim
    )
    blocks.normal_()
    order = torch.randperm(total, generator=generator)
    table = torch.full((len(lengths), max([1, *counts])), 2**62, dtype=torch.int64)
    begin = 0
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        mine = order[begin : begin + count]
        table[row, :count] = mine * layout.block_elements
        begin += count
        if length % layout.block_size:
            blocks[int(mine[-1]), :, :, :, length % layout.block_size :] = math.nan
    return Paged(layout, arena, table.to(device), torch.tensor(lengths, dtype=torch.int32, device=device))


def on_cpu(paged: Paged) -> Paged:
    return Paged(paged.layout, paged.arena.cpu(), paged.table.cpu(), paged.lengths.cpu())


def random(place: Place, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float32, device=place.device).to(dtype)


def make_sampling(place: Place, n: int, vocabulary: int, temperature: float, top_p: float) -> SamplingRows:
    device = place.device
    return SamplingRows(
        temperature=torch.full((n,), temperature, device=device),
        top_k=torch.full((n,), vocabulary, dtype=torch.int32, device=device),
        top_p=torch.full((n,), top_p, device=device),
        min_p=torch.zeros(n, device=device),
        seed=torch.arange(n, dtype=torch.int64, device=device),
        position=torch.arange(n, dtype=torch.int64, device=device) + 7,
    )


def sampled(place: Place, n: int) -> Sampled:
    return Sampled(
        tokens=torch.zeros(n, dtype=torch.int64, device=place.device),
        log_probabilities=torch.zeros(n, device=place.device),
        top_tokens=torch.zeros(n, 0, dtype=torch.int64, device=place.device),
        top_log_probabilities=torch.zeros(n, 0, device=place.device),
    )
