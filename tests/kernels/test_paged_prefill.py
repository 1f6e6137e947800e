"""`paged_prefill` against its reference, on caches full of poison, and against itself in other chunks."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenmux.kernels.layout import KVLayout
from tokenmux.kernels.paged_prefill.reference import paged_prefill

LAUNCH = "tokenmux.kernels.paged_prefill.launch:paged_prefill"


def attend(place, cache, query, chunks, layout, **variant):
    """Runs the kernel into poisoned outputs, with a query that is a strided view, and returns what it
    wrote."""
    tokens, heads, head_dim = query.shape
    fused = torch.full((tokens + 1, heads + 2, head_dim), float("nan"), dtype=query.dtype)
    fused[:tokens, :heads] = query
    return place.run(
        LAUNCH,
        query=fused[:tokens, :heads],
        arena=cache.arena,
        table=cache.table,
        lengths=cache.lengths,
        starts=starts_of(chunks),
        out=torch.full_like(query, float("nan")),
        layout=layout,
        longest_chunk=max(chunks),
        tile=place.prefill_tile(head_dim),
        **variant,
    )["out"]


def starts_of(chunks):
    return torch.tensor([0, *chunks]).cumsum(0).to(torch.int32)


@settings(max_examples=12)
@given(
    rows=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=3),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 3]),
    head_dim=st.sampled_from([64, 80, 128]),
    block_size=st.sampled_from([8, 16, 24]),
    window=st.sampled_from([None, 1, 17, 40]),
    softcap=st.sampled_from([None, 3.0]),
    with_sinks=st.booleans(),
    single=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example([(0, 1)], 1, 1, 64, 16, None, None, False, True, 0)
@example([(32, 33), (5, 0), (0, 16)], 2, 2, 64, 16, 20, None, True, False, 1)
@example([(63, 17)], 1, 1, 256, 16, 1, 2.0, False, True, 2)
def test_equals_its_reference(
    place, cache_maker, tolerance, rows, kv_heads, group, head_dim, block_size, window, softcap, with_sinks,
    single, seed,
):  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    dtype = place.dtypes[0 if single else 1]
    layout = KVLayout(layers=2, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size)
    chunks = [new for _, new in rows]
    cache = cache_maker(layout, [prefix + new for prefix, new in rows], dtype, generator)
    query = torch.randn(sum(chunks), kv_heads * group, head_dim, generator=generator).to(dtype)
    variant = {
        "layer": seed % 2,
        "scale": head_dim**-0.5,
        "window": window,
        "softcap": softcap,
        "sinks": torch.randn(kv_heads * group, generator=generator).to(dtype) if with_sinks else None,
    }
    expected = paged_prefill(
        query, cache.arena, cache.table, cache.lengths, starts_of(chunks), layout=layout, **variant
    )
    result = attend(place, cache, query, chunks, layout, **variant)
    torch.testing.assert_close(result.float(), expected, **tolerance[dtype])


@settings(max_examples=12)
@given(seed=st.integers(0, 2**16), window=st.sampled_from([None, 21]))
def test_chunks_and_neighbours_do_not_change_a_bit(place, cache_maker, seed, window):
    generator = torch.Generator().manual_seed(seed)
    layout = KVLayout(layers=1, kv_heads=1, head_dim=64, block_size=16)
    cache = cache_maker(layout, [75, 20], place.dtypes[1], generator)
    query = torch.randn(95, 2, 64, generator=generator).to(place.dtypes[1])
    whole = attend(place, cache, query, [75, 20], layout, layer=0, scale=0.125, window=window)
    begin = 0
    for chunk in (30, 39, 6):
        end = begin + chunk
        alone = type(cache)(cache.arena, cache.table[:1], torch.tensor([end], dtype=torch.int32))
        part = attend(place, alone, query[begin:end], [chunk], layout, layer=0, scale=0.125, window=window)
        assert torch.equal(part, whole[begin:end]), (begin, end)
        begin = end
