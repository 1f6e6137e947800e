"""`kv_append` against its reference: what it writes, and that it writes nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenmux.kernels.kv_append.reference import kv_append, slots
from tokenmux.kernels.kv_append.rotary import Rotary
from tokenmux.kernels.layout import KVLayout

LAUNCH = "tokenmux.kernels.kv_append.launch:kv_append"
ONE_ROUNDING = {
    torch.float32: {"atol": 1e-6, "rtol": 1e-6},
    torch.float16: {"atol": 1e-3, "rtol": 1e-3},
    torch.bfloat16: {"atol": 8e-3, "rtol": 8e-3},
}


@settings(max_examples=16)
@given(
    chunks=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    prefix=st.integers(0, 20),
    padding=st.integers(0, 3),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([64, 80, 128, 256]),
    block_size=st.sampled_from([8, 16, 24]),
    pairs=st.sampled_from([None, 8, 24, 32]),
    interleaved=st.booleans(),
    single=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example([1], 0, 0, 1, 64, 16, None, False, True, 0)
@example([16, 1], 15, 2, 2, 64, 16, 32, True, False, 1)
@example([17], 3, 1, 1, 80, 8, 32, False, True, 2)
def test_equals_its_reference(
    place, cache_maker, chunks, prefix, padding, kv_heads, head_dim, block_size, pairs, interleaved, single,
    seed
):  # fmt: skip
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
    query, key, value = fused.split([query_heads, kv_heads, kv_heads], dim=1)
    arguments = {
        "key": key,
        "value": value,
        "arena": cache.arena.clone(),
        "slots": torch.cat([real, torch.full((padding,), 2**62)]),
        "count": torch.tensor([len(real)], dtype=torch.int32),
        "layout": layout,
        "layer": seed % 2,
    }
    if pairs is not None:
        angle = torch.rand(tokens, pairs, generator=generator) * 6.3
        rotated = torch.full((tokens, query_heads, head_dim), float("nan"), dtype=dtype)
        arguments["rotary"] = Rotary(angle.cos(), angle.sin(), query, rotated, interleaved)

    returned = place.run(LAUNCH, **arguments)
    kv_append(**arguments)
    torch.testing.assert_close(returned["arena"], arguments["arena"], equal_nan=True, **ONE_ROUNDING[dtype])
    if pairs is not None:
        torch.testing.assert_close(
            returned["rotary"].rotated, arguments["rotary"].rotated, equal_nan=True, **ONE_ROUNDING[dtype]
        )


def test_rotation_is_what_transformers_does():
    """The half-split style turns (x_i, x_{i + d/2}), the interleaved one (x_{2i}, x_{2i+1}), by the same
    angle."""
    x = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0))
    angle = torch.rand(3, 8, generator=torch.Generator().manual_seed(1))
    from tokenmux.kernels.kv_append.reference import rotated

    def turn(first, second):
        return torch.view_as_real(torch.complex(first, second) * torch.exp(1j * angle)[:, None])

    halves = turn(x[..., :8], x[..., 8:])
    pairs = turn(x[..., 0::2], x[..., 1::2])
    rotary = Rotary(angle.cos(), angle.sin(), x, torch.empty_like(x))
    torch.testing.assert_close(rotated(x, rotary), torch.cat([halves[..., 0], halves[..., 1]], dim=-1))
    rotary = Rotary(angle.cos(), angle.sin(), x, torch.empty_like(x), interleaved=True)
    torch.testing.assert_close(rotated(x, rotary), pairs.flatten(-2))


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
    angles = torch.zeros(1, 12)
    rotary = Rotary(angles, angles, torch.zeros(1, 4, 64), torch.zeros(1, 4, 64))
    bad = {
        "do not fit": {"key": torch.zeros(1, 1, 64)},
        "last dimension of value": {"value": torch.zeros(1, 2, 128)[..., ::2]},
        "multiple of 8 that fits 64 dims, got 12": {"rotary": rotary},
        "got 40": {"rotary": Rotary(torch.zeros(1, 40), torch.zeros(1, 40), rotary.query, rotary.rotated)},
        "are contiguous": {
            "rotary": Rotary(torch.zeros(1, 32)[:, ::4], angles, rotary.query, rotary.rotated)
        },
    }
    for message, change in bad.items():
        with pytest.raises(ValueError, match=message):
            interpreter(LAUNCH, **good | change)
