"""The section `kernels` of `benchmarks.gpu`: every kernel against its floor, attention against torch's."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu_copies import copy_rate
from benchmarks.gpu_kernel_inputs import (
    LLAMA_8B,
    QWEN_7B,
    SMOLLM2,
    Heads,
    make_paged,
    make_sampling,
    random,
    sampled,
)
from benchmarks.gpu_place import Item, Place
from tokenmux.kernels import floors
from tokenmux.kernels.kv_append import launch as append
from tokenmux.kernels.kv_page import launch as page
from tokenmux.kernels.paged_decode import launch as decode
from tokenmux.kernels.paged_prefill import launch as prefill
from tokenmux.kernels.sample import launch as sampler


def timings(place: Place) -> list[Item]:
    dtype = place.dtypes[0]
    rate: list[float] = []

    def bandwidth() -> float:
        """Bytes per second within the device, read and written; measured once in this process."""
        if not rate:
            rate.append(copy_rate(place)["gb_per_s"] * 1e9)
        return rate[0]

    if place.interpreted:
        shapes, batches, prefixes = [Heads("small", 4, 2, 32)], [(2, 20)], [(10, 9)]
    else:
        shapes = [LLAMA_8B, QWEN_7B, SMOLLM2]
        batches = [(1, 4096), (8, 1024), (8, 4096), (32, 1024), (32, 4096), (1, 32_768)]
        prefixes = [(0, 512), (3584, 512), (0, 2048)]
    items = []
    for heads in shapes:
        for batch, context in batches:
            run = partial(time_decode, place, heads, dtype, batch, context, bandwidth)
            items.append(Item(f"paged_decode.{heads.name}.{batch}x{context}", run))
        for prefix, chunk in prefixes:
            run = partial(time_prefill, place, heads, dtype, prefix, chunk, bandwidth)
            items.append(Item(f"paged_prefill.{heads.name}.{prefix}+{chunk}", run))
        items += [
            Item(f"kv_append.{heads.name}.{n}", partial(time_append, place, heads, dtype, n, bandwidth))
            for n in ((3,) if place.interpreted else (64, 512))
        ]
        items.append(Item(f"kv_page.{heads.name}", partial(time_paging, place, heads, dtype)))
    for n, vocabulary in [(2, 300)] if place.interpreted else [(1, 128_256), (8, 128_256), (64, 128_256)]:
        for name, temperature, top_p in (("greedy", 0.0, 1.0), ("drawn", 1.0, 1.0), ("top_p", 1.0, 0.9)):
            run = partial(time_sample, place, dtype, n, vocabulary, temperature, top_p, bandwidth)
            items.append(Item(f"sample.{name}.{n}x{vocabulary}", run))
    return items


def against_floor(floor: int, taken: Mapping[str, Any], bandwidth: Callable[[], float]) -> dict[str, Any]:
    """The share of the copy bandwidth that a kernel reaches: its byte floor over its time, over the
    bandwidth."""
    rate = floor / taken["s"]
    return {**taken, "floor_bytes": floor, "gb_per_s": rate / 1e9, "share_of_copy": rate / bandwidth()}


def time_decode(
    place: Place, heads: Heads, dtype: torch.dtype, batch: int, context: int, bandwidth: Callable[[], float]
) -> Mapping[str, Any]:
    layout = heads.layout(layers=1)
    paged = make_paged(layout, [context] * batch, dtype, place.device)
    query = random(place, dtype, batch, heads.query, heads.dim)
    tile = place.decode_tile(heads.dim)
    n_partials = batch * heads.query * decode.splits(paged.table, layout, tile)
    workspace = decode.DecodeWorkspace.allocate(n_partials, heads.dim, place.device)
    out = torch.empty_like(query)

    def ours() -> None:
        decode.paged_decode(
            query, paged.arena, paged.table, paged.lengths, out, workspace,
            layout=layout, layer=0, tile=tile, scale=heads.dim**-0.5,
        )  # fmt: skip

    taken = place.seconds(ours)
    kv = random(place, dtype, 2, batch, heads.kv, context, heads.dim)
    q = query[:, :, None]
    theirs = place.seconds(
        lambda: F.scaled_dot_product_attention(q, kv[0], kv[1], enable_gqa=heads.query != heads.kv)
    )
    floor = floors.paged_decode(layout, [context] * batch, heads.query, dtype.itemsize)
    result = against_floor(floor, taken, bandwidth)
    return result | {"sdpa_s": theirs["s"], "over_sdpa": theirs["s"] / taken["s"]}


def time_prefill(
    place: Place, heads: Heads, dtype: torch.dtype, prefix: int, chunk: int, bandwidth: Callable[[], float]
) -> Mapping[str, Any]:
    layout, length = heads.layout(layers=1), prefix + chunk
    paged = make_paged(layout, [length], dtype, place.device)
    query = random(place, dtype, chunk, heads.query, heads.dim)
    starts = torch.tensor([0, chunk], dtype=torch.int32, device=place.device)
    out = torch.empty_like(query)
    tile = place.prefill_tile(heads.dim)

    def ours() -> None:
        prefill.paged_prefill(
            query, paged.arena, paged.table, paged.lengths, starts, out,
            layout=layout, layer=0, longest_chunk=chunk, tile=tile, scale=heads.dim**-0.5,
        )  # fmt: skip

    taken = place.seconds(ours)
    q = query.transpose(0, 1)[None]
    kv = random(place, dtype, 2, 1, heads.kv, length, heads.dim)
    mask = None
    if prefix:
        mask = torch.ones(chunk, length, dtype=torch.bool, device=place.device).tril(prefix)
    theirs = place.seconds(
        lambda: F.scaled_dot_product_attention(
            q, kv[0], kv[1], attn_mask=mask, is_causal=mask is None, enable_gqa=heads.query != heads.kv
        )
    )
    floor = floors.paged_prefill(layout, [length], [chunk], heads.query, dtype.itemsize)
    flops = floors.paged_prefill_flops([length], [chunk], heads.query, heads.dim)
    result = against_floor(floor, taken, bandwidth)
    return result | {
        "tflop_per_s": flops / taken["s"] / 1e12,
        "sdpa_s": theirs["s"],
        "over_sdpa": theirs["s"] / taken["s"],
    }


def time_append(
    place: Place, heads: Heads, dtype: torch.dtype, n: int, bandwidth: Callable[[], float]
) -> Mapping[str, Any]:
    layout = heads.layout(layers=1)
    paged = make_paged(layout, [layout.block_size] * n, dtype, place.device)
    key, value = random(place, dtype, n, 2, heads.kv, heads.dim).unbind(1)
    slots = paged.table[:, 0].contiguous()
    count = torch.tensor([n], dtype=torch.int32, device=place.device)
    taken = place.seconds(
        lambda: append.kv_append(key, value, paged.arena, slots, count, layout=layout, layer=0)
    )
    return against_floor(floors.kv_append(layout, n, dtype.itemsize), taken, bandwidth)


def time_paging(place: Place, heads: Heads, dtype: torch.dtype) -> Mapping[str, Any]:
    """GB/s over the bus of the kernel that pages, by its number of programs, both ways; the engines' are in
    `copies`."""
    layout = heads.layout(layers=2 if place.interpreted else 32)
    n = 2 if place.interpreted else 128
    size = layout.block_elements * dtype.itemsize
    device = torch.zeros(n * size, dtype=torch.uint8, device=place.device)
    host = torch.zeros(n * size, dtype=torch.uint8, pin_memory=not place.interpreted)
    offsets = torch.stack([torch.randperm(n) * size for _ in range(2)]).to(place.device)
    found: dict[str, Any] = {"block_bytes": size}
    for programs in (4, 8, 16, 32, None):
        for way, target, source in (("in", device, host), ("out", host, device)):
            taken = place.seconds(
                partial(page.kv_page, target, source, offsets, block_bytes=size, programs=programs)
            )
            found[f"{way}_{programs or 'all'}_gb_per_s"] = n * size / taken["s"] / 1e9
    return found


def time_sample(
    place: Place,
    dtype: torch.dtype,
    n: int,
    vocabulary: int,
    temperature: float,
    top_p: float,
    bandwidth: Callable[[], float],
) -> Mapping[str, Any]:
    logits = random(place, dtype, n, vocabulary)
    sampling = make_sampling(place, n, vocabulary, temperature, top_p)
    out = sampled(place, n)
    workspace = sampler.SampleWorkspace.allocate(n, vocabulary, 0, place.sample_tile, place.device)
    taken = place.seconds(lambda: sampler.sample(logits, sampling, out, workspace, tile=place.sample_tile))
    return against_floor(floors.sample(n, vocabulary, dtype.itemsize), taken, bandwidth)
