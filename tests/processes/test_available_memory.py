"""How much memory may still be taken."""

from pathlib import Path

import pytest

from tokenmux.core.errors import DoesNotFit
from tokenmux.processes import available_memory
from tokenmux.processes.available_memory import available_bytes, check_available


@pytest.mark.parametrize(("limit", "expected"), [("2048", 2048), ("max", 5 << 10), ("999999", 5 << 10)])
def test_a_container_has_what_it_may_have(limit: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   5 kB\n",
        "/sys/fs/cgroup/memory.max": f"{limit}\n",
    }
    monkeypatch.setattr(available_memory, "_read", lambda file: files.get(str(file), ""))
    assert available_bytes() == expected


def test_a_system_that_does_not_say_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available_memory, "_read", lambda _: "")
    assert available_bytes() is None
    assert available_memory._read(Path("/nowhere/at/all")) == ""


def test_more_than_there_is_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available_memory, "available_bytes", lambda: 512 << 10)
    check_available(512 << 10)
    with pytest.raises(DoesNotFit, match=r"600\.0 KiB of memory cannot be allocated .*512\.0 KiB are"):
        check_available(600 << 10)
    monkeypatch.setattr(available_memory, "available_bytes", lambda: None)
    check_available(1 << 60)
