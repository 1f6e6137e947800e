"""An executor in a process of its own: what passes over its socket, how it ends, what it leaves behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.executor.executor_driver import (
    FACTS,
    HOST_KV_BYTES,
    KB,
    N_PROMPT,
    WAIT_S,
    Driver,
    Host,
    InChild,
    blocks_of,
    broken,
    loaded,
    prompt,
)
from tokenmux.core.facts import FIRST_INSTANCE, ImageId
from tokenmux.core.sampling import Sampling
from tokenmux.messages.codec import EXECUTOR_SETUP
from tokenmux.messages.completions import CopyCompleted, ExecutorAlive
from tokenmux.messages.launches import (
    ArenaMove,
    Bind,
    CloseExecutor,
    FetchLaunch,
    MoveLaunch,
    StepLaunch,
    StepSegment,
    Unbind,
    UnmapImage,
)
from tokenmux.messages.setups import DeviceSetup, ExecutorSetup
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.entry import Entry
from tokenmux.processes.executor_environment import executor_environment, threads_of_step

SETUP = ExecutorSetup(FIRST_INSTANCE, DeviceSetup(FACTS), HOST_KV_BYTES)


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    root = tmp_path_factory.mktemp("catalogue")
    catalogue = Catalogue(root)
    return [
        catalogue.register_folder(family, tiny.create(family, root / "checkpoints" / family))
        for family in ("llama", "gpt2")
    ]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


@pytest.fixture(scope="module")
def child(host: Host) -> Iterator[Driver]:
    """A process for the tests that do not end it."""
    made = Driver(host, InChild)
    yield made
    made.close()


def process_of(driver: Driver) -> "subprocess.Popen[bytes]":
    assert isinstance(driver.link, InChild)
    return driver.link.process


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def maps_images(pid: int) -> bool:
    return "memfd:tokenmux-image" in Path(f"/proc/{pid}/maps").read_text()


def until(met: Callable[[], bool]) -> None:
    until_s = time.monotonic() + WAIT_S
    while not met():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_it_carries_out_everything_that_a_request_needs(
    child: Driver, host: Host, entries: list[Entry]
) -> None:
    entry = entries[0]
    alone = loaded(Driver(host), entry)
    blocks = blocks_of(entry)
    expected = alone.generate(entry, prompt(), N_PROMPT, blocks, 30, repeat=10, first=0)
    alone.close()
    assert len(set(expected)) > 3
    host.forget(entry)

    child.add(entry)
    assert not child.fetch(entry).error
    assert not child.place(entry, offset=1024 * KB).error
    drawn = child.generate(entry, prompt(), N_PROMPT, blocks, 10, first=0)
    assert not child.page(entry, blocks[:6], range(3, 9), into=False).error
    move = MoveLaunch(child.number(), (ArenaMove(1024 * KB, 256, entry.facts.n_bytes),))
    assert not child.copied(move).error
    child.tell(Bind(entry.facts.id, 256))
    elsewhere = [index + 20 for index in blocks]
    assert not child.page(entry, elsewhere[:6], range(3, 9), into=True).error
    drawn += child.generate(entry, prompt() + drawn, N_PROMPT, elsewhere, 20, repeat=10)
    assert drawn == expected
    child.tell(Unbind(entry.facts.id), UnmapImage(entry.facts.images[0].id))
    host.forget(entry)


def test_images_that_come_and_go_leave_no_descriptor_and_no_memory(
    child: Driver, host: Host, entries: list[Entry]
) -> None:
    pid, entry = process_of(child).pid, entries[1]
    child.add(entry)
    counts = []
    for _ in range(4):
        assert not child.fetch(entry).error
        assert not child.place(entry).error
        assert maps_images(pid)
        child.tell(Unbind(entry.facts.id), UnmapImage(entry.facts.images[0].id))
        until(lambda: not maps_images(pid))
        host.forget(entry)
        counts.append(open_files(pid))
    assert counts[0] == counts[-1]


def test_it_beats_while_a_read_hangs(child: Driver, tmp_path: Path) -> None:
    hung = Catalogue(tmp_path / "catalogue").register_folder("hung", tiny.create("gpt2", tmp_path / "files"))
    file = hung.manifest.file
    file.unlink()
    os.mkfifo(file)
    child.add(hung)
    child.map(hung, filled=False)
    child.tell(FetchLaunch(child.number(), hung.facts.id, hung.facts.images))
    for _ in range(3):
        child.received.clear()
        assert child.until(ExecutorAlive).silent_s == 0
    os.close(os.open(file, os.O_RDWR | os.O_NONBLOCK))  # the reader hears that there is nothing
    assert "cannot be read" in child.until(CopyCompleted).error
    child.tell(UnmapImage(hung.facts.images[0].id))


def test_a_process_that_is_stopped_is_silent_and_goes_on_when_it_is_continued(child: Driver) -> None:
    pid = process_of(child).pid
    child.until(ExecutorAlive)
    os.kill(pid, signal.SIGSTOP)
    assert isinstance(child.link, InChild)
    time.sleep(0.1)
    child.link.end.settimeout(2.5)
    try:
        with pytest.raises(TimeoutError):
            child.link.receive()
    finally:
        os.kill(pid, signal.SIGCONT)
        child.link.end.settimeout(WAIT_S)
    child.received.clear()
    child.until(ExecutorAlive)


def test_signals_to_the_group_are_the_parents(child: Driver) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process_of(child).pid, number)
    child.received.clear()
    child.until(ExecutorAlive)


def test_it_ends_at_once_when_it_is_told_to_in_the_middle_of_a_step(host: Host, entries: list[Entry]) -> None:
    one = Driver(host, InChild)
    entry = entries[0]
    loaded(one, entry)
    assert one.generate(entry, prompt(), N_PROMPT, blocks_of(entry), 1, first=0)
    segment = StepSegment((1,), 10, 10, tuple(blocks_of(entry)), True, Sampling())
    one.tell(StepLaunch(one.number(), entry.facts.id, (segment,), 100), CloseExecutor())
    assert process_of(one).wait(WAIT_S) == 0
    one.close()


def test_a_device_that_breaks_ends_the_process_with_the_reason(host: Host) -> None:
    one = Driver(host, InChild)
    one.tell(UnmapImage(ImageId("nothing")))
    assert "UnmapImage cannot be carried out: KeyError('nothing')" in broken(one.link).detail
    assert process_of(one).wait(WAIT_S) == 1
    one.close()


def test_a_frame_that_is_no_instruction_ends_the_process_with_the_reason(host: Host) -> None:
    one = Driver(host, InChild)
    assert isinstance(one.link, InChild)
    one.link.send_frame(b"\x80\x05\x95 a pickle")
    assert "the node sent 12 bytes that are not instructions" in broken(one.link).detail
    assert process_of(one).wait(WAIT_S) == 1
    one.close()


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"nonsense", "the node sent 8 bytes that are not an executor's setup"),
        (EXECUTOR_SETUP.encode(SETUP), "the node sent a setup without the memory for paged-out KV"),
    ],
)
def test_a_wrong_setup_ends_the_process_with_the_reason(host: Host, frame: bytes, says: str) -> None:
    link = InChild(None, host.host_kv)
    link.send_frame(frame)
    assert says in broken(link).detail
    assert link.process.wait(WAIT_S) == 1
    link.close()


def test_a_device_that_does_not_fit_is_said_before_the_process_ends(host: Host) -> None:
    link = InChild(None, host.host_kv)
    gpu = ExecutorSetup(FIRST_INSTANCE, DeviceSetup(FACTS, "cuda", "7"), HOST_KV_BYTES)
    link.send_frame(EXECUTOR_SETUP.encode(gpu), [host.host_kv])
    for _ in ("imports", "the arena"):
        (alive,) = link.receive()
        assert isinstance(alive, ExecutorAlive)
        assert alive.silent_s > 60, "it may take so long"
    assert "the device cannot be used: device.kind: cuda needs" in broken(link).detail
    assert link.process.wait(WAIT_S) == 1
    link.close()


def test_it_ends_with_its_node() -> None:
    """Killed, so that nothing is said or closed on purpose."""
    code = (
        "from tests.executor.executor_driver import *\n"
        "one = Driver(Host(), InChild)\n"
        "print(one.link.process.pid, flush=True)\n"
        "one.next(), input()"
    )
    node = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with node:
        assert node.stdout is not None
        pid = int(node.stdout.readline())
        node.kill()
    until(
        lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
    )


def test_threads_of_steps_are_divided_among_the_devices_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    environment = executor_environment({"HOME": "/somewhere"})
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("3", "passive")
    assert environment["HOME"] == "/somewhere"
    assert executor_environment({}, n_devices=3)["OMP_NUM_THREADS"] == "1"
    assert executor_environment({"OMP_NUM_THREADS": "7"}, n_devices=3)["OMP_NUM_THREADS"] == "7"


def test_chunks_of_weights_are_copied_past_the_cache_unless_the_operator_decided() -> None:
    ours = "glibc.cpu.x86_non_temporal_threshold=786432"
    assert executor_environment({})["GLIBC_TUNABLES"] == ours
    theirs = "glibc.malloc.check=1"
    assert executor_environment({"GLIBC_TUNABLES": theirs})["GLIBC_TUNABLES"] == f"{theirs}:{ours}"
    theirs = "glibc.cpu.x86_non_temporal_threshold=1000000"
    assert executor_environment({"GLIBC_TUNABLES": theirs})["GLIBC_TUNABLES"] == theirs


@pytest.mark.parametrize(
    ("n_cores", "n_devices", "n_threads"),
    [
        *((1, 1, 1), (2, 1, 1), (3, 1, 2), (4, 1, 3), (5, 1, 4), (6, 1, 4), (8, 1, 6), (12, 1, 8)),
        *((16, 1, 12), (64, 1, 48), (2, 2, 1), (4, 2, 1), (9, 2, 4), (16, 2, 6), (64, 8, 6), (4, 9, 1)),
    ],
)
def test_layers_divide_evenly_among_the_threads_of_a_step(
    n_cores: int, n_devices: int, n_threads: int
) -> None:
    assert threads_of_step(n_cores, n_devices) == n_threads
