"""Pointing a skeleton at its weights over and over: what an activation leaves behind is multiplied by
thousands a day."""

import ctypes
import gc
import os
from pathlib import Path

import pytest
import torch

from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.weights.image import map_image

N_SWAPS = 1000


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_a_thousand_swaps_leave_nothing(tmp_path: Path, family: str, dtype: str) -> None:
    """Resident memory, descriptors and threads after 1,000 swaps are those after 50, to a megabyte.

    One reference too many to each packed weight made that 13 MB or more.
    """
    checkpoint = tiny.create(family, tmp_path / "source")
    entry = Catalogue(tmp_path / "catalogue").register_folder("model", checkpoint, dtype=dtype)
    skeleton = entry.skeleton(packed=True)
    image = map_image(entry.manifest).clone()
    skeleton.pack(image)
    places = [torch.empty(image.numel() + 4096, dtype=torch.uint8)[shift:] for shift in (0, 64, 256)]

    def swap(times: int) -> tuple[int, int, int]:
        for time in range(times):
            skeleton.bind(places[time % len(places)])
            skeleton.unbind()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        return (
            resident,
            len(list(Path("/proc/self/fd").iterdir())),
            len(list(Path("/proc/self/task").iterdir())),
        )

    resident, *others = swap(50)
    grown, *others_after = swap(N_SWAPS)
    assert grown - resident < 1 << 20
    assert others_after == others
