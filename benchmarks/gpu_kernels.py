"""The sections of `benchmarks.gpu` that look at one kernel at a time: copies, correctness, timings."""

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu_place import Item, Place
from tokenmux.kernels import floors, warm
from tokenmux.kernels.kv_append import launch as append
from tokenmux.kernels.kv_append import reference as append_reference
from tokenmux.kernels.kv_page import launch as page
from tokenmux.kernels.kv_page.quantised import int8_error_bound
from tokenmux.kernels.layout import KVLayout
from tokenmux.kernels.paged_decode import launch as decode
from tokenmux.kernels.paged_decode import reference as decode_reference
from tokenmux.kernels.paged_prefill import launch as prefill
from tokenmux.kernels.paged_prefill import reference as prefill_reference
from tokenmux.kernels.sample import launch as sampler
from tokenmux.kernels.sample import reference as sample_reference
from tokenmux.kernels.sample.parameters import Sampled, SamplingRows

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Absolute and relative tolerance: a few roundings of the dtype."""


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


# ── copies ──────────────────────────────────────────────────────────────────────────────────────────────────


def copies(place: Place) -> list[Item]:
    return [
        Item("within_the_device", partial(copy_rate, place)),
        Item("host_to_device", partial(bus_rate, place, True)),
        Item("device_to_host", partial(bus_rate, place, False)),
    ]


def copy_rate(place: Place) -> Mapping[str, Any]:
    """Bytes read plus bytes written, per second. Launched directly: as a node of a captured graph the copy
    takes longer."""
    n_bytes = 1 << (20 if place.interpreted else 30)
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    taken = place.launched(lambda: target.copy_(source))
    return {"bytes": n_bytes, "gb_per_s": 2 * n_bytes / taken["s"] / 1e9, **taken}


def bus_rate(place: Place, into_device: bool) -> Mapping[str, Any]:
    """One large copy from or to pinned memory: the limit of swapping and paging."""
    n_bytes = 1 << (20 if place.interpreted else 29)
    host = torch.zeros(n_bytes, dtype=torch.uint8, pin_memory=not place.interpreted)
    device = torch.zeros(n_bytes, dtype=torch.uint8, device=place.device)
    target, source = (device, host) if into_device else (host, device)
    times = []
    for _ in range(6):
        place.settle()
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        place.settle()
        times.append(time.perf_counter() - began)
    best = sorted(times[1:])[2]
    return {"bytes": n_bytes, "gb_per_s": n_bytes / best / 1e9, "s": best}


# ── correctness ─────────────────────────────────────────────────────────────────────────────────────────────


def correctness(place: Place) -> list[Item]:
    shapes = [Heads("small", 4, 2, 32)] if place.interpreted else [SMOLLM2, LLAMA_8B, QWEN_7B, GEMMA_9B]
    items = []
    for dtype in place.dtypes:
        label = str(dtype).removeprefix("torch.")
        for heads in shapes:
            name = f"{heads.name}.{label}"
            items += [
                Item(f"kv_append.{name}", partial(check_append, place, heads, dtype)),
                Item(f"paged_decode.{name}", partial(check_decode, place, heads, dtype)),
                Item(f"paged_prefill.{name}", partial(check_prefill, place, heads, dtype)),
                Item(f"kv_page.{name}", partial(check_paging, place, heads, dtype)),
            ]
        items.append(Item(f"sample.{label}", partial(check_sample, place, dtype)))
    return items


def compare(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> dict[str, float]:
    got, expected = got.cpu().float(), expected.cpu().float()
    torch.testing.assert_close(got, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    return {"largest_error": float((got - expected).abs().max())}


def variants(heads: Heads, place: Place, dtype: torch.dtype) -> list[dict[str, Any]]:
    sinks = random(place, dtype, heads.query)
    return [
        {"window": None, "softcap": None, "sinks": None},
        {"window": 20, "softcap": 3.0, "sinks": sinks},
    ]


def run_decode(place: Place, query: torch.Tensor, paged: Paged, **options: Any) -> torch.Tensor:
    rows, heads, head_dim = query.shape
    tile = place.decode_tile(head_dim)
    n_partials = rows * heads * decode.splits(paged.table, paged.layout, tile)
    out = torch.full_like(query, math.nan)
    decode.paged_decode(
        query,
        paged.arena,
        paged.table,
        paged.lengths,
        out,
        decode.DecodeWorkspace.allocate(n_partials, head_dim, place.device),
        layout=paged.layout,
        tile=tile,
        **options,
    )
    return out


def check_decode(place: Place, heads: Heads, dtype: torch.dtype) -> Mapping[str, Any]:
    lengths = [0, 1, 17, 33] if place.interpreted else [0, 1, 16, 63, 64, 65, 255, 256, 257, 1000, 4096]
    paged = make_paged(heads.layout(), lengths, dtype, place.device)
    query = random(place, dtype, len(lengths), heads.query, heads.dim)
    host = on_cpu(paged)
    worst = {"largest_error": 0.0}
    for extra in variants(heads, place, dtype):
        options = {"layer": 1, "scale": heads.dim**-0.5, **extra}
        got = run_decode(place, query, paged, **options)
        expected = decode_reference.paged_decode(
            query.cpu(), host.arena, host.table, host.lengths, layout=host.layout, **to_cpu(options)
        )
        worst = max(worst, compare(got, expected, dtype), key=lambda found: found["largest_error"])
        alone = Paged(paged.layout, paged.arena, paged.table[-1:].contiguous(), paged.lengths[-1:])
        if not torch.equal(run_decode(place, query[-1:], alone, **options)[0], got[-1]):
            raise AssertionError("a row differs alone and in company")
    return worst


def to_cpu(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in options.items()
    }


def run_prefill(
    place: Place, query: torch.Tensor, paged: Paged, chunks: Sequence[int], **options: Any
) -> torch.Tensor:
    starts = torch.tensor([0, *chunks], dtype=torch.int32).cumsum(0).to(torch.int32).to(place.device)
    out = torch.full_like(query, math.nan)
    prefill.paged_prefill(
        query,
        paged.arena,
        paged.table,
        paged.lengths,
        starts,
        out,
        layout=paged.layout,
        longest_chunk=max(chunks),
        tile=place.prefill_tile(query.shape[2]),
        **options,
    )
    return out


def check_prefill(place: Place, heads: Heads, dtype: torch.dtype) -> Mapping[str, Any]:
    lengths, chunks = ([5, 40], [5, 20]) if place.interpreted else ([7, 512, 700, 1300], [7, 512, 188, 1])
    paged = make_paged(heads.layout(), lengths, dtype, place.device)
    query = random(place, dtype, sum(chunks), heads.query, heads.dim)
    host = on_cpu(paged)
    starts = torch.tensor([0, *chunks]).cumsum(0).to(torch.int32)
    worst = {"largest_error": 0.0}
    for extra in variants(heads, place, dtype):
        options = {"layer": 1, "scale": heads.dim**-0.5, **extra}
        got = run_prefill(place, query, paged, chunks, **options)
        expected = prefill_reference.paged_prefill(
            query.cpu(), host.arena, host.table, host.lengths, starts, layout=host.layout, **to_cpu(options)
        )
        worst = max(worst, compare(got, expected, dtype), key=lambda found: found["largest_error"])
    return worst


def check_append(place: Place, heads: Heads, dtype: torch.dtype) -> Mapping[str, Any]:
    n, used = (9, 7) if place.interpreted else (300, 290)
    paged = make_paged(heads.layout(), [n], dtype, place.device)
    key, value = random(place, dtype, n, 2, heads.kv, heads.dim).unbind(1)
    rows, positions = torch.zeros(n, dtype=torch.int64), torch.arange(n)
    slots = append_reference.slots(paged.table.cpu(), rows, positions, layout=paged.layout)
    count = torch.tensor([used], dtype=torch.int32)
    expected = paged.arena.cpu()
    append_reference.kv_append(key.cpu(), value.cpu(), expected, slots, count, layout=paged.layout, layer=1)
    append.kv_append(
        key,
        value,
        paged.arena,
        slots.to(place.device),
        count.to(place.device),
        layout=paged.layout,
        layer=1,
    )
    if not torch.equal(bits(paged.arena.cpu()), bits(expected)):
        raise AssertionError("other bits than the reference")
    return {"largest_error": 0.0}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as integers, so that NaN equals itself."""
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def check_paging(place: Place, heads: Heads, dtype: torch.dtype) -> Mapping[str, Any]:
    """Page blocks out of the arena and to other places in it: the same bits; in int8, within its error
    bound."""
    layout, n = heads.layout(), 3 if place.interpreted else 40
    size = layout.block_elements * dtype.itemsize
    arena = random(place, dtype, 2 * n * layout.block_elements)
    host = torch.zeros(n * size, dtype=torch.uint8, device=place.device)
    here, there, records = ((torch.randperm(n) + first).to(place.device) for first in (0, n, 0))
    blocks = arena.view(2 * n, -1)
    wanted = blocks[here]
    page.kv_page(host, arena.view(torch.uint8), torch.stack((records * size, here * size)), block_bytes=size)
    page.kv_page(arena.view(torch.uint8), host, torch.stack((there * size, records * size)), block_bytes=size)
    if not torch.equal(blocks[there], wanted):
        raise AssertionError("other bits than were paged out")
    elements = layout.block_elements
    page.kv_page_out_int8(host, arena, torch.stack((records * size, here * elements)), layout=layout)
    page.kv_page_in_int8(arena, host, torch.stack((there * elements, records * size)), layout=layout)
    back = blocks[there].view(-1, layout.head_dim).cpu().float()
    before = wanted.view(-1, layout.head_dim).cpu().float()
    bound = int8_error_bound(before.abs().amax(dim=-1, keepdim=True), dtype)
    error = (back - before).abs()
    if not bool((error <= bound).all()):
        raise AssertionError("int8 missed its bound")
    return {"largest_error": 0.0, "largest_int8_error": float(error.max())}


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


def check_sample(place: Place, dtype: torch.dtype) -> Mapping[str, Any]:
    """Check that nearly every token is the reference's: in 16 bits, ties at a cut may go either way by
    rounding."""
    n, vocabulary = (6, 300) if place.interpreted else (64, 32_000)
    logits = random(place, dtype, n, vocabulary) * 3
    shares = {}
    for name, temperature, top_p in (("greedy", 0.0, 1.0), ("drawn", 1.0, 1.0), ("top_p", 0.8, 0.9)):
        sampling = make_sampling(place, n, vocabulary, temperature, top_p)
        out = sampled(place, n)
        workspace = sampler.SampleWorkspace.allocate(n, vocabulary, 0, place.sample_tile, place.device)
        sampler.sample(logits, sampling, out, workspace, tile=place.sample_tile)
        moved = SamplingRows(
            **{field: getattr(sampling, field).cpu() for field in SamplingRows.__dataclass_fields__}
        )
        expected = sample_reference.sample(logits.cpu(), moved)
        shares[name] = float((out.tokens.cpu() == expected.tokens).double().mean())
        torch.testing.assert_close(
            out.log_probabilities.cpu()[out.tokens.cpu() == expected.tokens],
            expected.log_probabilities[out.tokens.cpu() == expected.tokens],
            atol=1e-3,
            rtol=1e-3,
        )
    if shares["greedy"] < 1.0 or min(shares.values()) < 0.95:
        raise AssertionError(f"share of tokens equal to the reference's: {shares}")
    return {f"same_{name}": share for name, share in shares.items()}


# ── timings ─────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── compiled ahead ──────────────────────────────────────────────────────────────────────────────────────────


def prepare(capability: int) -> str:
    """Compile the kernels of all sections into Triton's cache, on all cores. Needs no device; returns a
    report."""
    began = time.perf_counter()
    n = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn")) as pool:
        compiled = sum(pool.map(partial(compile_part, capability, n), range(n)))
    return f"{compiled} kernels for sm_{capability} in {time.perf_counter() - began:.0f} s"


def compile_part(capability: int, n_parts: int, part: int) -> int:
    """Compile every `n_parts`-th form, from number `part` on. Returns their number."""
    shapes = [
        warm.ModelShape(dtype, heads.dim, 16, heads.query // heads.kv, vocabulary, dtype, *extra)
        for dtype in (torch.bfloat16, torch.float16)
        for heads in (SMOLLM2, LLAMA_8B, QWEN_7B, GEMMA_9B, Heads("llama-3.2-1b", 32, 8, 64))
        for vocabulary in (128_256, 49_152, 32_000)
        for extra in ((), (True, dtype))
    ]
    mine = warm.distinct(form for shape in shapes for form in warm.forms(capability, shape).values())[
        part::n_parts
    ]
    for form in mine:
        form.compile(capability)
    return len(mine)


def preparation(place: Place) -> list[Item]:
    """Compile what later sections launch, so that none of them waits for it."""
    if place.interpreted:
        return [Item("kernels", lambda: {"summary": "nothing is compiled in the interpreter"})]
    return [Item("kernels", lambda: {"summary": prepare(place.capability)})]
