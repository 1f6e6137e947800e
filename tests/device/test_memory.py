"""Memory that we own, on kernels that lack what most have."""

import ctypes
import mmap
from pathlib import Path

import pytest

from tokenmux.device import memory
from tokenmux.device.memory import Memory, available_bytes


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


@pytest.mark.parametrize(("limit", "expected"), [("2048", 2048), ("max", 5 << 10), ("999999", 5 << 10)])
def test_a_container_has_what_it_may_have(limit: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   5 kB\n",
        "/sys/fs/cgroup/memory.max": f"{limit}\n",
    }
    monkeypatch.setattr(memory, "_read", lambda file: files.get(str(file), ""))
    assert available_bytes() == expected


def test_a_system_that_does_not_say_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_read", lambda _: "")
    assert available_bytes() is None
    assert memory._read(Path("/nowhere/at/all")) == ""
