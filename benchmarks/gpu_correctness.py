"""The section `correctness` of `benchmarks.gpu`: every kernel against its reference."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_kernel_inputs import (
    GEMMA_9B,
    LLAMA_8B,
    QWEN_7B,
    SMOLLM2,
    Heads,
    Paged,
    make_paged,
    make_sampling,
    on_cpu,
    random,
    sampled,
)
from benchmarks.gpu_place import Item, Place
from tokenmux.kernels.kv_append import launch as append
from tokenmux.kernels.kv_append import reference as append_reference
from tokenmux.kernels.kv_page import launch as page
from tokenmux.kernels.kv_page.quantised import int8_error_bound
from tokenmux.kernels.paged_decode import launch as decode
from tokenmux.kernels.paged_decode import reference as decode_reference
from tokenmux.kernels.paged_prefill import launch as prefill
from tokenmux.kernels.paged_prefill import reference as prefill_reference
from tokenmux.kernels.sample import launch as sampler
from tokenmux.kernels.sample import reference as sample_reference
from tokenmux.kernels.sample.parameters import SamplingRows

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Absolute and relative tolerance: a few roundings of the dtype."""


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
