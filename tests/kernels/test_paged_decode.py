"""`paged_decode` against its reference, on caches full of poison."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenmux.kernels.layout import KVLayout
from tokenmux.kernels.paged_decode.reference import paged_decode
from tokenmux.kernels.tiles import DecodeTile

LAUNCH = "tokenmux.kernels.paged_decode.launch:paged_decode"


def attend(place, cache, query, layout, **variant):
    """Runs the kernel into poisoned outputs, with a query that is a strided view, and returns what it
    wrote."""
    from tokenmux.kernels.paged_decode.launch import DecodeWorkspace, splits

    rows, heads, head_dim = query.shape
    tile = place.decode_tile(head_dim)
    workspace = DecodeWorkspace.allocate(rows * heads * splits(cache.table, layout, tile), head_dim, "cpu")
    workspace.partials.fill_(float("nan"))
    workspace.log_sums.fill_(float("nan"))
    fused = torch.full((rows, heads + 3, head_dim), float("nan"), dtype=query.dtype)
    fused[:, 1 : heads + 1] = query
    return place.run(
        LAUNCH,
        query=fused[:, 1 : heads + 1],
        arena=cache.arena,
        table=cache.table,
        lengths=cache.lengths,
        out=torch.full_like(query, float("nan")),
        workspace=workspace,
        layout=layout,
        tile=tile,
        **variant,
    )["out"]


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(0, 80), min_size=1, max_size=3),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 3, 4, 17]),
    head_dim=st.sampled_from([64, 80, 128]),
    block_size=st.sampled_from([8, 16, 24]),
    window=st.sampled_from([None, 1, 20, 33]),
    softcap=st.sampled_from([None, 3.0]),
    with_sinks=st.booleans(),
    single=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example([0], 1, 1, 64, 16, None, None, True, True, 0)
@example([0, 1, 16, 32, 33, 64], 2, 4, 64, 16, None, None, False, True, 0)
@example([64, 65, 80], 1, 2, 256, 16, 32, 2.0, True, False, 1)
def test_equals_its_reference(
    place, cache_maker, tolerance, lengths, kv_heads, group, head_dim, block_size, window, softcap,
    with_sinks,
    single, seed,
):  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    dtype = place.dtypes[0 if single else 1]
    layout = KVLayout(layers=2, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size)
    cache = cache_maker(layout, lengths, dtype, generator)
    query = torch.randn(len(lengths), kv_heads * group, head_dim, generator=generator).to(dtype)
    variant = {
        "layer": seed % 2,
        "scale": head_dim**-0.5,
        "window": window,
        "softcap": softcap,
        "sinks": torch.randn(kv_heads * group, generator=generator).to(dtype) if with_sinks else None,
    }
    expected = paged_decode(query, cache.arena, cache.table, cache.lengths, layout=layout, **variant)
    torch.testing.assert_close(
        attend(place, cache, query, layout, **variant).float(), expected, **tolerance[dtype]
    )


@settings(max_examples=12)
@given(seed=st.integers(0, 2**16))
def test_a_row_does_not_depend_on_its_neighbours(place, cache_maker, seed):
    generator = torch.Generator().manual_seed(seed)
    layout = KVLayout(layers=1, kv_heads=2, head_dim=64, block_size=16)
    cache = cache_maker(layout, [70, 5, 0, 33], place.dtypes[1], generator)
    query = torch.randn(4, 4, 64, generator=generator).to(place.dtypes[1])
    together = attend(place, cache, query, layout, layer=0, scale=0.125)
    for row in range(4):
        used = max(1, -(-int(cache.lengths[row]) // layout.block_size))
        alone = type(cache)(
            cache.arena, cache.table[row : row + 1, :used].clone(), cache.lengths[row : row + 1]
        )
        result = attend(place, alone, query[row : row + 1], layout, layer=0, scale=0.125)
        assert torch.equal(result[0], together[row]), row


def test_misfits_are_refused(interpreter, cache_maker):
    from tokenmux.kernels.paged_decode.launch import DecodeWorkspace

    layout = KVLayout(layers=1, kv_heads=2, head_dim=64, block_size=16)
    cache = cache_maker(layout, [5], torch.float32, torch.Generator().manual_seed(0))
    query = torch.zeros(1, 4, 64)
    good = {
        "query": query,
        "arena": cache.arena,
        "table": cache.table,
        "lengths": cache.lengths,
        "out": torch.zeros_like(query),
        "workspace": DecodeWorkspace.allocate(16, 64, "cpu"),
        "layout": layout,
        "layer": 0,
        "tile": DecodeTile(16, 32, 4, 1),
        "scale": 1.0,
    }
    interpreter(LAUNCH, **good)
    bad = {
        "do not fit": {"query": torch.zeros(1, 3, 64), "out": torch.zeros(1, 3, 64)},
        "out is contiguous": {"out": torch.zeros(1, 4, 128)[..., ::2]},
        "workspace holds": {"workspace": DecodeWorkspace.allocate(3, 64, "cpu")},
        "made for heads smaller": {"workspace": DecodeWorkspace.allocate(4, 32, "cpu")},
        "multiples of 16": {"query": torch.zeros(1, 4, 72)[..., :64]},
        "last dimension of query": {"query": torch.zeros(1, 4, 128)[..., ::2]},
        "16-byte boundary": {"arena": cache.arena[1:]},
    }
    for message, change in bad.items():
        with pytest.raises(ValueError, match=message):
            interpreter(LAUNCH, **good | change)
