"""Launches on a device that is not there: what was compiled ahead of time is what a launch looks up.

The driver below says that it is a GPU, takes any kernel and runs none. Everything of Triton's launch path in
front of it is real: how arguments are specialised, and under which key the compiled form is looked up.
"""

from __future__ import annotations

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from tokenmux.kernels import warm
from tokenmux.kernels.kv_append.launch import kv_append
from tokenmux.kernels.kv_append.rotary import Rotary
from tokenmux.kernels.kv_move.launch import kv_move
from tokenmux.kernels.kv_pack import launch as kv_pack
from tokenmux.kernels.kv_pack.quantised import Quantised
from tokenmux.kernels.layout import KVLayout
from tokenmux.kernels.paged_decode import launch as paged_decode
from tokenmux.kernels.paged_prefill.launch import paged_prefill
from tokenmux.kernels.sample import launch as sample
from tokenmux.kernels.sample.parameters import Penalties, Sampled, SamplingRows
from tokenmux.kernels.tiles import SampleTile, decode_tile, prefill_tile

BF16 = torch.bfloat16


class AbsentDevice:
    """The part of Triton's driver that a launch uses."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.utils = self
        self.launched: list[str] = []
        self.programs: list[int] = []

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return f"absent device {id(self)}"  # not a number that another test's kernels may be cached under

    def get_current_stream(self, device):
        return 0

    def get_device_properties(self, device):
        return {"max_shared_mem": 99 * 1024}

    def load_binary(self, name, kernel, shared, device):
        return None, name, 0, 0, 1024

    def unload_module(self, module):
        pass

    def launcher_cls(self, source, metadata):
        def launch(x, y, z, *_):
            self.launched.append(metadata.name)
            self.programs.append(x * y * z)

        return launch


@pytest.fixture
def absent_device(monkeypatch):
    device = AbsentDevice(90)
    monkeypatch.setattr(driver, "_active", device)
    return device


@pytest.fixture
def compilations(monkeypatch, tmp_path):
    """Counts what is compiled into a cache of its own, and what is found there."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    counts = {"compiled": 0, "found": 0}

    def listen(*, cache_hit, **_):
        counts["found" if cache_hit else "compiled"] += 1

    monkeypatch.setattr(triton.knobs.compilation, "listener", listen)
    return counts


def test_launches_find_what_was_compiled_for_them(absent_device, compilations):
    shape = warm.ModelShape(
        dtype=BF16,
        head_dim=64,
        block_size=16,
        group=3,
        vocabulary=4800,
        logits=BF16,
        softcap=True,
        sinks=BF16,
        rotary_pairs=32,
    )
    compiled = warm.compile_for(90, shape)
    assert compilations == {"compiled": len(compiled), "found": 0}
    # Numbers that Triton would specialise on if it were let: 1, and multiples of 16.
    for layer, window, kv_heads, rows in ((0, None, 1, 1), (1, 1, 2, 3), (16, 4096, 16, 16)):
        launch_everything(KVLayout(17, kv_heads, 64, 16), layer, window, rows, shape.vocabulary)
    assert compilations == {"compiled": len(compiled), "found": len(compiled)}
    assert len(absent_device.launched) == 3 * len(compiled)


def launch_everything(layout, layer, window, rows, vocabulary):
    heads = 3 * layout.kv_heads
    arena = torch.zeros(2 * layout.block_elements, dtype=BF16)
    table = torch.zeros(rows, 3, dtype=torch.int64)
    lengths = torch.ones(rows, dtype=torch.int32)
    angles = torch.zeros(rows, 32)
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

    kv_append(
        key, value, arena, table[:, 0], lengths[:1], layout=layout, layer=layer,
        rotary=Rotary(angles, angles, query, out),
    )  # fmt: skip
    workspace = paged_decode.Workspace.allocate(rows * heads, 64, "cpu")
    paged_decode.paged_decode(
        query, arena, table, lengths, out, workspace, tile=decode_tile(90, 64), **attention
    )  # fmt: skip
    starts = torch.arange(rows + 1, dtype=torch.int32)
    paged_prefill(
        query, arena, table, lengths, starts, out, longest_chunk=1, tile=prefill_tile(90, 64), **attention
    )  # fmt: skip

    offsets, staging = table[:2, 0], torch.zeros(2, layout.block_elements, dtype=BF16)
    sides = torch.zeros(2, rows, dtype=torch.int64)
    kv_pack.kv_page(arena.view(torch.uint8), staging.view(torch.uint8), sides, block_bytes=16 * rows)
    kv_pack.kv_pack(arena, offsets, staging, layout=layout)
    kv_pack.kv_unpack(arena, offsets, staging, layout=layout)
    kv_move(arena, offsets, offsets, layout=layout)
    quantised = Quantised.allocate(2, layout)
    kv_pack.kv_pack_int8(arena, offsets, quantised, layout=layout)
    kv_pack.kv_unpack_int8(arena, offsets, quantised, layout=layout)
    host = staging.view(torch.uint8).view(-1)
    kv_pack.kv_page_out_int8(host, arena, sides, layout=layout)
    kv_pack.kv_page_in_int8(arena, host, sides, layout=layout)

    floats, ints, longs = torch.zeros(rows), lengths, torch.zeros(rows, dtype=torch.int64)
    listed = torch.zeros(rows, 1, dtype=torch.int32)
    tile = SampleTile()
    sample.sample(
        torch.zeros(rows, vocabulary, dtype=BF16),
        SamplingRows(floats, ints, floats, floats, longs, longs),
        Sampled(longs, floats, torch.zeros(rows, 1, dtype=torch.int64), torch.zeros(rows, 1)),
        sample.Workspace.allocate(rows, vocabulary, 1, tile, "cpu"),
        tile=tile,
        penalties=Penalties(listed, listed, ints, floats, floats, floats),
    )


@pytest.mark.parametrize("blocks", [1, 3, 64, 4096])
@pytest.mark.parametrize("layers", [1, 32])
def test_paging_leaves_the_multiprocessors_to_the_step_beside_it(absent_device, compilations, blocks, layers):
    """However many blocks: their programs wait for the bus, and one that waits keeps its place from
    others."""
    layout = KVLayout(layers, 8, 128, 16)
    arena = torch.zeros(layout.block_elements, dtype=BF16)
    host = torch.zeros(layout.block_elements * 2, dtype=torch.uint8)
    sides = torch.zeros(2, blocks, dtype=torch.int64)
    kv_pack.kv_page(host, arena.view(torch.uint8), sides, block_bytes=host.numel())
    kv_pack.kv_page(arena.view(torch.uint8), host, sides, block_bytes=host.numel())
    kv_pack.kv_page_out_int8(host, arena, sides, layout=layout)
    kv_pack.kv_page_in_int8(arena, host, sides, layout=layout)
    staging = torch.zeros(blocks, layout.block_elements if blocks < 4096 else 0, dtype=BF16)
    if staging.numel():
        kv_pack.kv_pack(arena, sides[0], staging, layout=layout)
        kv_pack.kv_unpack(arena, sides[0], staging, layout=layout)
    pieces = blocks * layers * 2 * 8 * 16 * 128 // 8192
    assert max(absent_device.programs) <= min(16, 2 * pieces)
    assert len(absent_device.programs) == (6 if staging.numel() else 4)
