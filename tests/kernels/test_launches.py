"""Launches on a device that is not there: what was compiled ahead of time is what a launch looks up."""

from __future__ import annotations

import pytest
import torch
import triton

from tokenmux.kernels import kinds, warm
from tokenmux.kernels.absent import absent_device
from tokenmux.kernels.kv_append import kernel
from tokenmux.kernels.kv_append.launch import kv_append
from tokenmux.kernels.kv_page import launch as kv_page
from tokenmux.kernels.layout import KVLayout
from tokenmux.kernels.paged_decode import launch as paged_decode
from tokenmux.kernels.paged_prefill.launch import paged_prefill
from tokenmux.kernels.sample import launch as sample
from tokenmux.kernels.sample.parameters import Sampled, SamplingRows
from tokenmux.kernels.tiles import SampleTile, decode_tile, prefill_tile

BF16 = torch.bfloat16


@pytest.fixture
def device():
    with absent_device(90) as device:
        yield device


@pytest.fixture
def compilations(monkeypatch, tmp_path):
    """Counts what is compiled into a cache of its own, and what is found there."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    counts = {"compiled": 0, "found": 0}

    def listen(*, cache_hit, **_):
        counts["found" if cache_hit else "compiled"] += 1

    monkeypatch.setattr(triton.knobs.compilation, "listener", listen)
    return counts


def test_launches_find_what_was_compiled_for_them(device, compilations):
    shape = warm.ModelShape(
        dtype=BF16,
        head_dim=64,
        block_size=16,
        group=3,
        vocabulary=4800,
        logits=BF16,
        softcap=True,
        sinks=BF16,
    )
    compiled = warm.compile_for(90, shape)
    assert compilations == {"compiled": len(compiled), "found": 0}
    # Numbers that Triton would specialise on if it were let: 1, and multiples of 16.
    for layer, window, kv_heads, rows in ((0, None, 1, 1), (1, 1, 2, 3), (16, 4096, 16, 16)):
        launch_everything(KVLayout(17, kv_heads, 64, 16), layer, window, rows, shape.vocabulary)
    assert compilations == {"compiled": len(compiled), "found": len(compiled)}
    assert len(device.launched) == 3 * len(compiled)


def launch_everything(layout, layer, window, rows, vocabulary):
    heads = 3 * layout.kv_heads
    arena = torch.zeros(2 * layout.block_elements, dtype=BF16)
    table = torch.zeros(rows, 3, dtype=torch.int64)
    lengths = torch.ones(rows, dtype=torch.int32)
    fused = torch.zeros(rows, heads + 2 * layout.kv_heads, 64, dtype=BF16)
    query, key, value = fused.split([heads, layout.kv_heads, layout.kv_heads], dim=1)
    out = torch.zeros(rows, heads, 64, dtype=BF16)
    sinks = torch.zeros(heads, dtype=BF16)
    attention = {
        "layout": layout,
        "layer": layer,
        "scale": 0.125,
        "window": window,
        "softcap": 30.0,
        "sinks": sinks,
    }

    kv_append(key, value, arena, table[:, 0], lengths[:1], layout=layout, layer=layer)
    workspace = paged_decode.DecodeWorkspace.allocate(rows * heads, 64, "cpu")
    paged_decode.paged_decode(
        query, arena, table, lengths, out, workspace, tile=decode_tile(90, 64), **attention
    )  # fmt: skip
    starts = torch.arange(rows + 1, dtype=torch.int32)
    paged_prefill(
        query, arena, table, lengths, starts, out, longest_chunk=1, tile=prefill_tile(90, 64), **attention
    )  # fmt: skip

    host = torch.zeros(2 * layout.block_elements * 2, dtype=torch.uint8)
    sides = torch.zeros(2, rows, dtype=torch.int64)
    kv_page.kv_page(arena.view(torch.uint8), host, sides, block_bytes=16 * rows)
    kv_page.kv_page_out_int8(host, arena, sides, layout=layout)
    kv_page.kv_page_in_int8(arena, host, sides, layout=layout)

    floats, ints, longs = torch.zeros(rows), lengths, torch.zeros(rows, dtype=torch.int64)
    tile = SampleTile()
    for dtype in (BF16, torch.float32):  # rows whose logits rules change are float32
        sample.sample(
            torch.zeros(rows, vocabulary, dtype=dtype),
            SamplingRows(floats, ints, floats, floats, longs, longs),
            Sampled(longs, floats, torch.zeros(rows, 1, dtype=torch.int64), torch.zeros(rows, 1)),
            sample.SampleWorkspace.allocate(rows, vocabulary, 1, tile, "cpu"),
            tile=tile,
        )


@pytest.mark.parametrize("blocks", [1, 3, 64, 4096])
@pytest.mark.parametrize("layers", [1, 32])
def test_paging_leaves_the_multiprocessors_to_the_step_beside_it(device, compilations, blocks, layers):
    """However many blocks: their programs wait for the bus, and one that waits keeps its place from
    others."""
    layout = KVLayout(layers, 8, 128, 16)
    arena = torch.zeros(layout.block_elements, dtype=BF16)
    host = torch.zeros(layout.block_elements * 2, dtype=torch.uint8)
    sides = torch.zeros(2, blocks, dtype=torch.int64)
    kv_page.kv_page(host, arena.view(torch.uint8), sides, block_bytes=host.numel())
    kv_page.kv_page(arena.view(torch.uint8), host, sides, block_bytes=host.numel())
    kv_page.kv_page_out_int8(host, arena, sides, layout=layout)
    kv_page.kv_page_in_int8(arena, host, sides, layout=layout)
    pieces = blocks * layers * 2 * 8 * 16 * 128 // 8192
    assert max(device.programs) <= min(16, 2 * pieces)
    assert len(device.programs) == 4


def test_a_launch_after_the_first_does_not_ask_triton_again(device, compilations, monkeypatch):
    """Triton's own look-up takes 20 us of Python a launch; a step of a 32-layer model launches about a
    hundred kernels."""
    layout = KVLayout(2, 2, 64, 16)
    key = torch.zeros(3, 2, 64, dtype=BF16)
    arena = torch.zeros(layout.block_elements, dtype=BF16)
    slots, count = torch.zeros(3, dtype=torch.int64), torch.ones(1, dtype=torch.int32)
    kv_append(key, key, arena, slots, count, layout=layout, layer=0)
    monkeypatch.setattr(triton.JITFunction, "run", None)
    kv_append(key, key, arena, slots, count, layout=layout, layer=1)
    assert device.launched == ["append", "append"]
    with pytest.raises(ValueError, match="key must start on a 16-byte boundary"):
        kv_append(key.view(-1)[1:129].view(1, 2, 64), key[:1], arena, slots, count, layout=layout, layer=1)


def test_what_is_launched_is_handed_over_in_the_order_of_the_signature(device, compilations, monkeypatch):
    handed = []
    monkeypatch.setattr(
        device, "launcher_cls", lambda *_: lambda *arguments: handed.append(arguments[9:]), raising=False
    )
    sides = torch.tensor([[16, 32], [48, 64]])
    target, source = torch.zeros(128, dtype=torch.uint8), torch.ones(128, dtype=torch.uint8)
    for _ in range(2):
        kv_page.kv_page(target, source, sides, block_bytes=16)
    first, second = handed
    for arguments in (first, second):
        assert [x.data_ptr() if torch.is_tensor(x) else x for x in arguments] == [
            target.data_ptr(), source.data_ptr(), sides[0].data_ptr(), sides[1].data_ptr(), 1, 2,
            kv_page.CHUNK,
        ]  # fmt: skip


def test_a_variant_names_every_parameter_once():
    append = kernel.append
    with pytest.raises(TypeError, match="parameters"):
        append.variant({kinds.MODEL: BF16}, {"HEAD_DIM": 64}, warps=4)
    with pytest.raises(KeyError):
        append.variant({}, {}, warps=4)
