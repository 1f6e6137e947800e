"""Reads that hang are given up, and hold up nobody else. The hanging ones wait for an event that the test
sets, or for ever."""

import threading
import time
from collections.abc import Callable

import pytest

from tokenmux.core.errors import BadCheckpoint, Unavailable
from tokenmux.core.facts import Image, ImageId
from tokenmux.device import reader as module
from tokenmux.device.reader import GivenUpError, Reader, ToldBytes

PATIENCE_S = 0.05
"""Of reads that never come to anything; the others have a minute."""
WAIT_S = 60.0


class RealClock:
    def now_s(self) -> float:
        return time.monotonic()


def images(*names: str, n_bytes: int = 10) -> tuple[Image, ...]:
    return tuple(Image(ImageId(name), n_bytes) for name in names)


def ignore(_: object = None) -> None:
    pass


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.setattr(module, "PATIENCE_S", PATIENCE_S)
    return Reader(RealClock())


def hang(until: threading.Event) -> Callable[[ToldBytes], None]:
    def job(told: ToldBytes) -> None:
        until.wait()
        told(5)
        raise AssertionError("it was given up: it must not read on")

    return job


def test_a_read_that_brings_nothing_is_given_up_and_the_next_one_is_done(reader: Reader) -> None:
    never, discarded = threading.Event(), threading.Event()
    with pytest.raises(Unavailable, match=r"made no progress for 0\.05 s and was given up"):
        reader.read(images("a"), hang(never), discarded.set, ignore)
    assert not discarded.is_set(), "it may still be written into"
    reader._patience_s = WAIT_S
    heard: list[int] = []
    reader.read(images("b"), lambda told: told(10), ignore, heard.append)
    assert heard == [10]
    with pytest.raises(Unavailable, match="an earlier read of its weights still hangs"):
        reader.read(images("c", "a"), lambda told: told(10), ignore, ignore)
    never.set()
    assert discarded.wait(WAIT_S), "what it wrote into is freed once it has returned"
    while reader._stuck:
        time.sleep(0)
    reader.read(images("a"), lambda told: told(10), ignore, heard.append)
    assert heard == [10, 10]
    reader.close()


def test_progress_is_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves by almost all of the patience with every piece."""

    class Pieces:
        at_s = 0.0

        def now_s(self) -> float:
            return self.at_s

    clock = Pieces()
    reader = Reader(clock)

    def job(told: ToldBytes) -> None:
        for _ in range(10):
            clock.at_s += 0.9 * module.PATIENCE_S
            told(1)

    reader.read(images("a"), job, ignore, ignore)
    reader.close()


def test_what_follows_the_last_byte_is_no_disks_fault(reader: Reader) -> None:
    go_on = threading.Event()

    def job(told: ToldBytes) -> None:
        told(10)
        assert not go_on.wait(4 * PATIENCE_S), "nobody gave it up meanwhile"

    reader.read(images("a"), job, ignore, ignore)
    reader.close()


def test_errors_of_the_job_and_of_the_report_come_through_and_free_the_memory(reader: Reader) -> None:
    discarded: list[str] = []

    def bad(told: ToldBytes) -> None:
        raise BadCheckpoint("cut off")

    with pytest.raises(BadCheckpoint):
        reader.read(images("a"), bad, lambda: discarded.append("a"), ignore)

    def stop(_: int) -> None:
        raise KeyError("superseded")

    with pytest.raises(KeyError):
        reader.read(images("b"), lambda told: told(1), lambda: discarded.append("b"), stop)
    assert discarded == ["a", "b"]
    reader.close()


def test_closing_waits_for_nothing(reader: Reader) -> None:
    reader._patience_s = 3600.0
    begun = threading.Event()

    def job(_: ToldBytes) -> None:
        begun.set()
        threading.Event().wait()

    def close() -> None:
        assert begun.wait(WAIT_S)
        reader.close()

    threading.Thread(target=close).start()
    with pytest.raises(GivenUpError):
        reader.read(images("a"), job, ignore, ignore)


def test_too_many_that_hang_need_a_new_process(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STUCK", 2)
    never = threading.Event()
    for name in "ab":
        with pytest.raises(Unavailable):
            reader.read(images(name), hang(never), ignore, ignore)
    with pytest.raises(RuntimeError, match="3 reads of weights hang"):
        reader.read(images("c"), hang(never), ignore, ignore)
    never.set()
