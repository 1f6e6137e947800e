"""Pages of host memory: images that come and go keep their bytes, each page is locked once, and memory
goes back."""

import gc
import os
import re
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.device.cuda.fake_gpu import FakeGpu
from tokenmux.device.cuda.host_pages import HostPages, PagedImage

PAGE = 16 << 10


def fill(image: PagedImage, seed: int) -> bytes:
    data = Random(seed).randbytes(image.n_bytes)
    image.view()[:] = data
    image.lock()
    return data


def bytes_of(image: PagedImage) -> bytes:
    return b"".join(bytes(piece.numpy()) for piece in image.pieces())


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5 * PAGE + 1)), max_size=30), st.integers(0, 99))
def test_images_keep_their_bytes_while_others_come_and_go(steps: list[tuple[bool, int]], seed: int) -> None:
    random, gpu = Random(seed), FakeGpu()
    pool = HostPages(gpu, PAGE)
    live: dict[int, tuple[PagedImage, bytes]] = {}
    most = 0
    for number, (comes, n_bytes) in enumerate(steps):
        if comes or not live:
            image = pool.take(n_bytes)
            assert len(image.view()) == n_bytes
            live[number] = image, fill(image, number)
            assert image.locked
        else:
            live.pop(random.choice(list(live)))[0].close()
        pages = [piece.data_ptr() for image, _ in live.values() for piece in image.pieces() if len(piece)]
        assert len(set(pages)) == len(pages)
        most = max(most, sum(max(1, -(-image.n_bytes // PAGE)) for image, _ in live.values()))
        assert gpu.n_locks == len(gpu.locked) == most, "a page is locked when it is filled for the first time"
        for image, data in live.values():
            assert bytes_of(image) == data == bytes(image.view())
    pool.close()


def test_pages_that_the_system_does_not_lock_are_said_to_be_unlocked_and_not_tried_again() -> None:
    gpu = FakeGpu(lockable=False)
    pool = HostPages(gpu, PAGE)
    for _ in range(3):
        image = pool.take(2 * PAGE)
        image.lock()
        assert not image.locked
        image.close()
    assert gpu.n_locks == 2
    pool.close()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux lists the mappings")
def test_nothing_stays_mapped_or_open() -> None:
    def mapped() -> int:
        return len(re.findall("tokenmux-images", Path("/proc/self/maps").read_text()))

    gc.collect()  # what earlier tests left in cycles is not to go in between
    before, files = mapped(), len(os.listdir("/proc/self/fd"))
    pool = HostPages(FakeGpu(), PAGE)
    image = pool.take(5 * PAGE)
    view = torch.frombuffer(image.view(), dtype=torch.uint8)
    view.fill_(7)
    image.close()
    assert mapped() > before
    pool.close()
    assert int(view.sum()) == 7 * 5 * PAGE, "who still looks sees what was there"
    del image, pool, view
    gc.collect()
    assert mapped() <= before
    assert len(os.listdir("/proc/self/fd")) <= files
