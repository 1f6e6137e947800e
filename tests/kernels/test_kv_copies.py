"""`kv_page`, `kv_pack`, `kv_unpack` and `kv_move`: bit for bit, and through int8 within the bound that is
promised."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenmux.kernels.kv_move import reference as move_reference
from tokenmux.kernels.kv_pack import reference as pack_reference
from tokenmux.kernels.kv_pack.choice import PageMethod, page_method
from tokenmux.kernels.kv_pack.quantised import Quantised, int8_error_bound, record_bytes
from tokenmux.kernels.layout import KVLayout

PACK = "tokenmux.kernels.kv_pack.launch:"
MOVE = "tokenmux.kernels.kv_move.launch:kv_move"

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


def bits(tensor):
    """NaN equals itself bit for bit."""
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)


@settings(max_examples=16)
@given(layout=layouts, blocks=st.integers(0, 4), single=st.booleans(), seed=st.integers(0, 2**16))
@example(KVLayout(3, 3, 128, 24), 1, True, 0)
def test_packing_and_unpacking_are_exact(place, layout, blocks, single, seed):
    dtype = place.dtypes[0 if single else 1]
    arena, offsets = strewn(layout, blocks, dtype, seed)
    staging = torch.full((blocks + 1, layout.block_elements), -7.0, dtype=dtype)
    expected = staging.clone()
    pack_reference.kv_pack(arena, offsets, expected[:blocks], layout=layout)
    packed = place.run(PACK + "kv_pack", arena=arena, offsets=offsets, staging=staging, layout=layout)[
        "staging"
    ]
    assert torch.equal(bits(packed), bits(expected))

    elsewhere = torch.full_like(arena, -7.0)
    unpacked = place.run(PACK + "kv_unpack", arena=elsewhere, offsets=offsets, staging=packed, layout=layout)
    pack_reference.kv_unpack(elsewhere, offsets, expected[:blocks], layout=layout)
    assert torch.equal(bits(unpacked["arena"]), bits(elsewhere))


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
    pack_reference.kv_page(expected, source, offsets, block_bytes=size)
    paged = place.run(PACK + "kv_page", target=target, source=source, offsets=offsets, block_bytes=size)
    assert torch.equal(paged["target"], expected)


@settings(max_examples=16)
@given(
    layout=layouts,
    blocks=st.integers(0, 3),
    magnitude=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    single=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_int8_keeps_its_bound(place, layout, blocks, magnitude, single, seed):
    dtype = place.dtypes[0 if single else 1]
    arena, offsets = strewn(layout, blocks, dtype, seed)
    arena.mul_(magnitude)
    staging = Quantised.allocate(blocks, layout)
    packed = place.run(PACK + "kv_pack_int8", arena=arena, offsets=offsets, staging=staging, layout=layout)
    result = place.run(
        PACK + "kv_unpack_int8",
        arena=torch.full_like(arena, -7.0),
        offsets=offsets,
        staging=packed["staging"],
        layout=layout,
    )["arena"]
    for offset in offsets.tolist():
        before = layout.block(arena, offset).float()
        after = layout.block(result, offset).float()
        clean = ~before.isnan().any(dim=-1)
        bound = int8_error_bound(before.abs().amax(dim=-1, keepdim=True), dtype)
        assert ((before - after).abs() <= bound)[clean].all()

    # The format, not only its error: the reference makes the same codes but where a quotient lies on a half.
    expected = Quantised.allocate(blocks, layout)
    pack_reference.kv_pack_int8(arena, offsets, expected, layout=layout)
    clean = torch.cat(
        [~layout.block(arena, offset).isnan().any(dim=-1).flatten() for offset in offsets.tolist()]
        or [torch.zeros(0, dtype=torch.bool)]
    )
    rows = packed["staging"].codes.view(-1, layout.head_dim).int()[clean]
    same = expected.codes.view(-1, layout.head_dim).int()[clean]
    assert ((rows - same).abs() <= 1).all()
    torch.testing.assert_close(packed["staging"].scales.flatten()[clean], expected.scales.flatten()[clean])
    back = torch.full_like(arena, -7.0)
    pack_reference.kv_unpack_int8(back, offsets, packed["staging"], layout=layout)
    for offset in offsets.tolist():
        torch.testing.assert_close(layout.block(result, offset), layout.block(back, offset), equal_nan=True)


@settings(max_examples=16)
@given(layout=layouts, blocks=st.integers(0, 3), single=st.booleans(), seed=st.integers(0, 2**16))
@example(KVLayout(3, 3, 128, 24), 3, True, 0)  # 42 pieces for 16 programs
def test_records_hold_what_packing_makes(place, layout, blocks, single, seed):
    """Codes and scales of each block together, anywhere on the host; around records and blocks nothing
    changes."""
    dtype = place.dtypes[0 if single else 1]
    arena, offsets = strewn(layout, blocks, dtype, seed)
    arena.nan_to_num_()
    pitch = layout.block_elements * dtype.itemsize
    host = torch.full((blocks * pitch + 16,), 7, dtype=torch.uint8)
    records = torch.randperm(blocks) * pitch
    out = torch.stack((records, offsets))
    paged = place.run(PACK + "kv_page_out_int8", host=host, arena=arena, offsets=out, layout=layout)["host"]
    packed = place.run(
        PACK + "kv_pack_int8",
        arena=arena,
        offsets=offsets,
        staging=Quantised.allocate(blocks, layout),
        layout=layout,
    )["staging"]
    expected = host.clone()
    for record, codes, scales in zip(records.tolist(), packed.codes, packed.scales, strict=True):
        whole = torch.cat((codes.view(torch.uint8), scales.view(torch.uint8)))
        assert len(whole) == record_bytes(layout)
        expected[record : record + len(whole)] = whole
    assert torch.equal(paged, expected)

    elsewhere = torch.full_like(arena, -7.0)
    back = place.run(
        PACK + "kv_page_in_int8", arena=elsewhere, host=paged, offsets=out.flip(0), layout=layout
    )["arena"]
    unpacked = place.run(
        PACK + "kv_unpack_int8", arena=elsewhere, offsets=offsets, staging=packed, layout=layout
    )["arena"]
    assert torch.equal(back, unpacked)

    by_reference = host.clone()
    pack_reference.kv_page_out_int8(by_reference, arena, out, layout=layout)
    assert (
        (by_reference.view(torch.int8).int() - paged.view(torch.int8).int()).abs() <= 1
    ).float().mean() > 0.99
    pack_reference.kv_page_in_int8(elsewhere, paged, out.flip(0), layout=layout)
    torch.testing.assert_close(elsewhere, back)


@settings(max_examples=16)
@given(
    layout=layouts,
    moves=st.integers(0, 3),
    shared=st.booleans(),
    single=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_moving_is_exact(place, layout, moves, shared, single, seed):
    arena, offsets = strewn(layout, 2 * moves, place.dtypes[0 if single else 1], seed)
    sources, targets = offsets[:moves], offsets[moves:]
    if shared and moves:
        sources = sources[:1].repeat(moves)
    moved = place.run(MOVE, arena=arena, sources=sources, targets=targets, layout=layout)["arena"]
    move_reference.kv_move(arena, sources, targets, layout=layout)
    assert torch.equal(bits(moved), bits(arena))


@given(
    sources=st.lists(st.integers(0, 12), max_size=3),
    targets=st.lists(st.integers(0, 12), max_size=3),
)
def test_overlapping_moves_are_refused(sources, targets):
    size = 3
    touched = [
        (target, other)
        for place, target in enumerate(targets)
        for other in sources + targets[:place]
        if abs(target - other) < size
    ]
    if touched:
        with pytest.raises(ValueError, match="overlaps"):
            move_reference.check_apart(sources, targets, size)
    else:
        move_reference.check_apart(sources, targets, size)


def test_misfits_are_refused(interpreter):
    layout = KVLayout(1, 1, 64, 16)
    arena, one = torch.zeros(layout.block_elements), torch.zeros(1, dtype=torch.int64)
    staging = torch.zeros(1, layout.block_elements)
    with pytest.raises(ValueError, match="elements a block"):
        interpreter(PACK + "kv_pack", arena=arena, offsets=one, staging=staging[:, 1:], layout=layout)
    with pytest.raises(ValueError, match="staging holds"):
        interpreter(PACK + "kv_unpack", arena=arena, offsets=one.repeat(2), staging=staging, layout=layout)
    raw = torch.zeros(64, dtype=torch.uint8)
    with pytest.raises(ValueError, match="multiples of 16 bytes"):
        interpreter(PACK + "kv_page", target=raw, source=raw, offsets=one.repeat(2, 1), block_bytes=24)
    halved = Quantised(torch.zeros(1, layout.block_elements, dtype=torch.int8), torch.zeros(1, 7))
    with pytest.raises(ValueError, match="a block"):
        interpreter(PACK + "kv_pack_int8", arena=arena, offsets=one, staging=halved, layout=layout)
    with pytest.raises(ValueError, match="1 sources for 2 targets"):
        interpreter(MOVE, arena=arena, sources=one, targets=one.repeat(2), layout=layout)


def test_small_blocks_go_by_kernel_and_large_ones_by_copy_engine():
    assert page_method(2 * 2**20, 50e9) is PageMethod.COPY_ENGINE
    assert page_method(368_640, 50e9) is PageMethod.KERNEL
    assert page_method(64 * 2**10, 50e9) is PageMethod.KERNEL
    assert page_method(64 * 2**10, 50e9, copy_overhead_s=1e-7) is PageMethod.COPY_ENGINE
