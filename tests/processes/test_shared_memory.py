"""Memory that processes share: it is there for all who have the descriptor, and gone after the last."""

import errno
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenmux.core.errors import DoesNotFit
from tokenmux.processes import available_memory, shared_memory
from tokenmux.processes.shared_memory import allocate, create_shared, map_shared

KB = 1 << 10


def test_what_one_process_writes_another_reads() -> None:
    descriptor = create_shared("test", 64 * KB)
    mapped = map_shared(descriptor, 64 * KB, populate=True)
    mapped[1000:1005] = b"hello"
    code = "import mmap, sys; m = mmap.mmap(int(sys.argv[1]), 65536); print(m[1000:1005]); m[:3] = b'yes'"
    command = [sys.executable, "-c", code, str(descriptor)]
    said = subprocess.run(command, pass_fds=(descriptor,), capture_output=True, check=True, timeout=60)
    assert said.stdout.strip() == b"b'hello'"
    assert mapped[:3] == b"yes"
    mapped.close()
    os.close(descriptor)


@pytest.mark.parametrize("n_bytes", [0, 1, 4095, 4096, 100_000])
def test_any_size_can_be_created_and_mapped(n_bytes: int) -> None:
    descriptor = create_shared("odd", n_bytes)
    allocate(descriptor, n_bytes)
    with map_shared(descriptor, n_bytes, populate=True) as mapped:
        assert len(mapped) == max(1, n_bytes)
    os.close(descriptor)


def test_pages_are_allocated_when_asked_for_and_given_back_with_the_last_descriptor() -> None:
    descriptor = create_shared("pages", 1 << 20)
    assert os.fstat(descriptor).st_blocks == 0
    allocate(descriptor, 1 << 20)
    assert os.fstat(descriptor).st_blocks * 512 == 1 << 20
    os.close(descriptor)
    other = create_shared("populated", 1 << 20)
    mapped = map_shared(other, 1 << 20, populate=True)
    assert os.fstat(other).st_blocks * 512 >= 1 << 20
    mapped.close()
    os.close(other)


def test_a_kernel_that_cannot_populate_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = create_shared("old-kernel", 1 << 20)
    monkeypatch.setattr(shared_memory, "_MADV_POPULATE_WRITE", 12345)
    with map_shared(descriptor, 1 << 20, populate=True):
        assert os.fstat(descriptor).st_blocks * 512 == 1 << 20
    os.close(descriptor)


def test_its_name_can_be_read_and_programs_that_are_started_do_not_inherit_it() -> None:
    descriptor = create_shared("image-" + "x" * 300, 1)
    name = Path(f"/proc/self/fd/{descriptor}").readlink().name
    assert name.startswith("memfd:tokenmux-image-xxx")
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_more_than_there_is_is_refused_and_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available_memory, "available_bytes", lambda: 64 * KB)
    descriptor = create_shared("large", 65 * KB)
    with pytest.raises(DoesNotFit, match=r"64\.0 KiB are available"):
        allocate(descriptor, 65 * KB)
    assert os.fstat(descriptor).st_blocks == 0
    os.close(descriptor)


def allocated(n_bytes: int) -> int:
    descriptor = create_shared("refused", n_bytes)
    try:
        allocate(descriptor, n_bytes)
    except DoesNotFit:
        os.close(descriptor)
        raise
    return descriptor


@pytest.mark.parametrize("call", ["memfd_create", "ftruncate", "posix_fallocate"])
def test_what_the_system_refuses_is_said_with_a_remedy(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(DoesNotFit, match=r"Too many open files.*: raise the limit of open"):
        allocated(8 * KB)
    monkeypatch.undo()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_mapping_that_is_not_possible_is_said() -> None:
    descriptor = create_shared("short", 4 * KB)
    with pytest.raises(DoesNotFit, match="cannot be shared between processes"):
        map_shared(descriptor, 1 << 20, populate=False)
    os.close(descriptor)
    assert mmap.PAGESIZE >= 4 * KB
