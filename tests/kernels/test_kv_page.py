"""Paging: bit for bit, and by way of int8 within the bound that is promised."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenmux.kernels.kv_page import reference
from tokenmux.kernels.kv_page.choice import PageMethod, page_method
from tokenmux.kernels.kv_page.quantised import int8_error_bound, record_bytes
from tokenmux.kernels.layout import KVLayout

LAUNCH = "tokenmux.kernels.kv_page.launch:"

layouts = st.builds(
    KVLayout,
    layers=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([64, 80, 128]),
    block_size=st.sampled_from([8, 16, 24]),
)


def strewn(layout, blocks, dtype, seed):
    """An arena of random numbers with NaN among them, and offsets of blocks that do not touch, in no
    order."""
    generator = torch.Generator().manual_seed(seed)
    pitch = layout.block_elements + 16
    arena = torch.randn(blocks * pitch + 32, generator=generator).to(dtype)
    arena[::97] = float("nan")
    return arena, torch.randperm(blocks, generator=generator) * pitch + 16


@settings(max_examples=16)
@given(sixteenths=st.integers(1, 1200), blocks=st.integers(0, 4), seed=st.integers(0, 2**16))
@example(512, 3, 0)
@example(513, 3, 0)
@example(1025, 13, 0)  # 39 chunks for 16 programs
def test_paging_is_exact_whatever_lies_on_either_side(place, sixteenths, blocks, seed):
    """Bytes at offsets of no common grid but 16, and around them nothing changes."""
    size, generator = 16 * sixteenths, torch.Generator().manual_seed(seed)
    source = torch.randint(0, 256, (blocks * (size + 48) + 64,), dtype=torch.uint8, generator=generator)
    target = torch.full((blocks * (size + 16) + 32,), 7, dtype=torch.uint8)
    there = torch.randperm(blocks, generator=generator) * (size + 16) + 16
    here = torch.randperm(blocks, generator=generator) * (size + 48) + 32
    offsets = torch.stack((there, here))
    expected = target.clone()
    reference.kv_page(expected, source, offsets, block_bytes=size)
    for programs in (16, None):
        paged = place.run(
            LAUNCH + "kv_page",
            target=target,
            source=source,
            offsets=offsets,
            block_bytes=size,
            programs=programs,
        )
        assert torch.equal(paged["target"], expected)


@settings(max_examples=16)
@given(
    layout=layouts,
    blocks=st.integers(0, 3),
    magnitude=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    single=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example(KVLayout(3, 3, 128, 24), 3, 1.0, True, 0)  # 42 pieces for 16 programs
def test_int8_keeps_its_bound(place, layout, blocks, magnitude, single, seed):
    """Records anywhere on the host, out and in again; around records and blocks nothing changes."""
    dtype = place.dtypes[0 if single else 1]
    arena, offsets = strewn(layout, blocks, dtype, seed)
    arena.mul_(magnitude)
    pitch = layout.block_elements * dtype.itemsize
    host = torch.full((blocks * pitch + 16,), 7, dtype=torch.uint8)
    out = torch.stack((torch.randperm(blocks) * pitch, offsets))
    paged = place.run(LAUNCH + "kv_page_out_int8", host=host, arena=arena, offsets=out, layout=layout)["host"]
    elsewhere = torch.full_like(arena, -7.0)
    result = place.run(
        LAUNCH + "kv_page_in_int8", arena=elsewhere, host=paged, offsets=out.flip(0), layout=layout
    )["arena"]

    around_records, around_blocks = paged.clone(), result.clone()
    for record, offset in out.T.tolist():
        before = layout.block(arena, offset).float()
        after = layout.block(result, offset).float()
        clean = ~before.isnan().any(dim=-1)
        bound = int8_error_bound(before.abs().amax(dim=-1, keepdim=True), dtype)
        assert ((before - after).abs() <= bound)[clean].all()
        around_records[record : record + record_bytes(layout)] = 7
        layout.block(around_blocks, offset).fill_(-7.0)
    assert (around_records == 7).all()
    assert (around_blocks == -7.0).all()

    # The format, not only its error: the reference makes the same codes but where a quotient lies on a half.
    expected = host.clone()
    reference.kv_page_out_int8(expected, arena, out, layout=layout)
    for record, offset in out.T.tolist():
        clean = ~layout.block(arena, offset).isnan().any(dim=-1).flatten()
        codes, scales = parts(paged, record, layout)
        same_codes, same_scales = parts(expected, record, layout)
        assert ((codes.int() - same_codes.int()).abs() <= 1)[clean].all()
        torch.testing.assert_close(scales[clean], same_scales[clean])
    back = torch.full_like(arena, -7.0)
    reference.kv_page_in_int8(back, paged, out.flip(0), layout=layout)
    torch.testing.assert_close(result, back, equal_nan=True)


def parts(host, record, layout):
    """The codes `[row, dim]` and the scales `[row]` of a record."""
    whole = host[record : record + record_bytes(layout)].clone()
    codes = whole[: layout.block_elements].view(torch.int8).view(-1, layout.head_dim)
    return codes, whole[layout.block_elements :].view(torch.float32)


def test_misfits_are_refused(interpreter):
    one, raw = torch.zeros(1, dtype=torch.int64), torch.zeros(64, dtype=torch.uint8)
    with pytest.raises(ValueError, match="multiples of 16 bytes"):
        interpreter(LAUNCH + "kv_page", target=raw, source=raw, offsets=one.repeat(2, 1), block_bytes=24)
    layout = KVLayout(1, 1, 16, 1)
    arena = torch.zeros(layout.block_elements)
    with pytest.raises(ValueError, match="records are multiples of 16 bytes"):
        interpreter(
            LAUNCH + "kv_page_out_int8", host=raw, arena=arena, offsets=one.repeat(2, 1), layout=layout
        )


def test_small_blocks_go_by_kernel_and_large_ones_by_copy_engine():
    assert page_method(2 * 2**20, 50e9) is PageMethod.COPY_ENGINE
    assert page_method(368_640, 50e9) is PageMethod.KERNEL
    assert page_method(64 * 2**10, 50e9) is PageMethod.KERNEL
    assert page_method(64 * 2**10, 50e9, copy_overhead_s=1e-7) is PageMethod.COPY_ENGINE
