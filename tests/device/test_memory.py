"""Memory that we own, on kernels that lack what most have."""

import ctypes
import mmap

import pytest

from tokenmux.device.memory import Memory


class NoHugePages(mmap.mmap):
    """As on a kernel that was built without transparent huge pages."""

    def madvise(self, advice: int, *rest: int) -> None:
        if advice == mmap.MADV_HUGEPAGE:
            raise OSError(22, "Invalid argument")
        super().madvise(advice, *rest)


def test_a_kernel_without_huge_pages_has_memory_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "mmap", NoHugePages)
    made = Memory(10_000, touch=True)
    ctypes.memset(made.address, 7, 10_000)
    assert bytes(made.as_tensor()[9_998:10_000].tolist()) == b"\7\7"
    made.close()


@pytest.mark.parametrize("n_bytes", [1, 64, 10_001, (2 << 20) + 64])
def test_an_arena_starts_at_a_multiple_of_256(n_bytes: int) -> None:
    """Offsets within it are such multiples, and it is the address that matrix libraries look at."""
    made = Memory(n_bytes, touch=False)
    assert made.address % 256 == made.as_tensor().data_ptr() % 256 == 0
    made.close()
