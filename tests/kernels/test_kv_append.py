"""`kv_append` against its reference: what it writes, and that it writes nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenmux.kernels.kv_append.reference import kv_append, slots
from tokenmux.kernels.layout import KVLayout

LAUNCH = "tokenmux.kernels.kv_append.launch:kv_append"


@settings(max_examples=16)
@given(
    chunks=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    prefix=st.integers(0, 20),
    padding=st.integers(0, 3),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([64, 80, 128, 256]),
    block_size=st.sampled_from([8, 16, 24]),
    single=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example([1], 0, 0, 1, 64, 16, True, 0)
@example([16, 1], 15, 2, 2, 64, 16, False, 1)
@example([17], 3, 1, 1, 80, 8, True, 2)
def test_equals_its_reference(
    place, cache_maker, chunks, prefix, padding, kv_heads, head_dim, block_size, single, seed
):
    generator = torch.Generator().manual_seed(seed)
    dtype = place.dtypes[0 if single else 1]
    layout = KVLayout(layers=2, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size)
    cache = cache_maker(layout, [prefix + new for new in chunks], dtype, generator)
    rows = torch.repeat_interleave(torch.arange(len(chunks)), torch.tensor(chunks))
    positions = torch.cat([prefix + torch.arange(new) for new in chunks])
    real = slots(cache.table, rows, positions, layout=layout)
    tokens, query_heads = len(real) + padding, kv_heads * 2
    # One fused projection, as models make it; slots of padding point out of bounds.
    fused = torch.randn(tokens, query_heads + 2 * kv_heads, head_dim, generator=generator).to(dtype)
    _, key, value = fused.split([query_heads, kv_heads, kv_heads], dim=1)
    arguments = {
        "key": key,
        "value": value,
        "arena": cache.arena.clone(),
        "slots": torch.cat([real, torch.full((padding,), 2**62)]),
        "count": torch.tensor([len(real)], dtype=torch.int32),
        "layout": layout,
        "layer": seed % 2,
    }

    returned = place.run(LAUNCH, **arguments)
    kv_append(**arguments)
    assert torch.equal(bits(returned["arena"]), bits(arguments["arena"]))


def bits(tensor):
    """As integers, where NaN equals itself."""
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def test_misfits_are_refused(interpreter):
    layout = KVLayout(layers=1, kv_heads=2, head_dim=64, block_size=16)
    good = {
        "key": torch.zeros(1, 2, 64),
        "value": torch.zeros(1, 2, 64),
        "arena": torch.zeros(layout.block_elements),
        "slots": torch.zeros(1, dtype=torch.int64),
        "count": torch.ones(1, dtype=torch.int32),
        "layout": layout,
        "layer": 0,
    }
    interpreter(LAUNCH, **good)
    bad = {
        "do not fit": {"key": torch.zeros(1, 1, 64)},
        "last dimension of value": {"value": torch.zeros(1, 2, 128)[..., ::2]},
    }
    for message, change in bad.items():
        with pytest.raises(ValueError, match=message):
            interpreter(LAUNCH, **good | change)
