"""What importing the package may bring in, and that tiles exist for every device that is served."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tokenmux.kernels.tiles import GpuArchitecture, decode_tile, group_tile, prefill_tile

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # any import of it fails
import tokenmux.kernels, tokenmux.kernels.layout, tokenmux.kernels.tiles, tokenmux.kernels.floors
import tokenmux.kernels.interpreter, tokenmux.kernels.kv_page.choice, tokenmux.kernels.kv_page.quantised
for kernel in ("kv_append", "paged_decode", "paged_prefill", "kv_page", "sample"):
    __import__(f"tokenmux.kernels.{kernel}.reference")
assert not [name for name in sys.modules if name.startswith("tokenmux.") and not
name.startswith("tokenmux.kernels")]
"""


def test_references_need_no_triton():
    subprocess.run([sys.executable, "-c", WITHOUT_TRITON], check=True)


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 112, 128, 192, 256])
@pytest.mark.parametrize("capability", [80, 86, 87, 89, 90, 100, 103, 110, 120, 121])
def test_every_device_and_head_size_has_tiles(capability, head_dim):
    decode, prefill = decode_tile(capability, head_dim), prefill_tile(capability, head_dim)
    assert decode.split % decode.tokens == 0
    assert prefill.queries >= 64


def test_unknown_sizes_and_devices_are_refused():
    with pytest.raises(ValueError, match="up to 256"):
        decode_tile(90, 512)
    with pytest.raises(ValueError, match="at most 64"):
        group_tile(71)
    with pytest.raises(ValueError, match=r"8\.0 or newer"):
        GpuArchitecture.of(75)
