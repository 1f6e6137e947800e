"""A worker in a process of its own, and one that cannot begin."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import msgspec
import pytest
import torch

from tokenmux.core.errors import ConfigError, NotServable, WorkerFailed
from tokenmux.core.facts import DeviceFacts, HostFacts, Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.executor import worker_main
from tokenmux.executor.assemble import DeviceKind, WorkerSetup
from tokenmux.executor.calibrate import Speeds, measure, read_measured
from tokenmux.executor.worker import MAX_UNSENT, ProcessWorker, threads_beside_others, worker_environment
from tokenmux.messages.commands import AskTrace, Order, Register, Ticket
from tokenmux.messages.reports import Alive, Broken, Report, Reports, Traced
from tokenmux.processes.monotonic_clock import MonotonicClock

WAIT_S = 60.0
MB = 1 << 20
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


def config(kind: DeviceKind, arena_bytes: int = MB) -> WorkerSetup:
    facts = DeviceFacts("some", arena_bytes, MB, 1e9, 1e9, 1e9, 1e9, slab_bytes=MB // 16)
    return WorkerSetup(facts, HostFacts(MB, 1e9), kind=kind)


@pytest.mark.parametrize(
    ("of", "remedy"),
    [
        pytest.param(config("cuda"), "or set `kind: cpu`", id="no GPU", marks=NO_GPU),
        pytest.param(config("cuda", 1 << 50), "lower device.arena", id="no room", marks=GPU),
    ],
)
def test_a_worker_whose_device_cannot_be_opened_says_why_and_ends(of: WorkerSetup, remedy: str) -> None:
    inbox: SimpleQueue[Report] = SimpleQueue()
    worker = ProcessWorker(of, into(inbox))
    try:
        message = inbox.get(timeout=WAIT_S)
        assert isinstance(message, Broken)
        assert message.detail.startswith("the device cannot be used: ")
        assert remedy in message.detail
        assert isinstance(inbox.get(timeout=WAIT_S), Broken), "and that the process is gone"
    finally:
        worker.close()


def into(inbox: "SimpleQueue[Report]") -> Callable[[Reports], None]:
    def put(reports: Reports) -> None:
        for report in reports.reports:
            inbox.put(report)

    return put


@contextmanager
def real_worker() -> Iterator[tuple[ProcessWorker, SimpleQueue[Report]]]:
    """A worker process that has begun to serve."""
    inbox: SimpleQueue[Report] = SimpleQueue()
    worker = ProcessWorker(config("cpu"), into(inbox))
    try:
        while not isinstance(inbox.get(timeout=WAIT_S), Alive):
            pass
        yield worker, inbox
    finally:
        worker.kill()
        worker.close()


def test_signals_to_the_group_are_the_fronts_to_answer() -> None:
    with real_worker() as (worker, inbox):
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
        worker.send(Order(Ticket(1), AskTrace(1.0)))
        while not isinstance(message := inbox.get(timeout=WAIT_S), Traced):
            assert not isinstance(message, Broken)


def test_sending_to_a_stopped_worker_never_blocks_and_it_can_be_ended() -> None:
    """More than any pipe holds; then more than may wait. A test that blocks here ends by pytest's own
    limit."""
    with real_worker() as (worker, _):
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(WorkerFailed, match="unread"):
            flood(worker, 2 * MAX_UNSENT)


def flood(worker: ProcessWorker, n: int) -> None:
    for ticket in range(n):
        worker.send(Order(Ticket(ticket), AskTrace(1.0)))


def test_the_processor_is_measured() -> None:
    speeds = measure("cpu", MonotonicClock())
    assert min(speeds.copy_bytes_per_s, speeds.read_bytes_per_s, speeds.flops_per_s) > 1e6
    assert (speeds.name, speeds.free_bytes) == ("cpu", None)


@NO_GPU
def test_a_gpu_that_is_not_there_is_not_measured() -> None:
    with pytest.raises(ConfigError, match="or set `kind: cpu`"):
        measure("cuda", MonotonicClock())


def test_what_another_process_measured_is_read_from_its_last_line() -> None:
    speeds = Speeds(1e9, 2e9, 3e12, "some GPU", free_bytes=80 << 30)
    print_it = f"print('a warning'); print({msgspec.json.encode(speeds).decode()!r})"
    assert read_measured([sys.executable, "-c", print_it]) == speeds


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise RuntimeError('no device')", "RuntimeError: no device; look at `nvidia-smi`"),
        ("import os; os._exit(3)", "measuring ended with status 3"),
        ("print('{}')", "missing required field"),
        ("pass", "the GPU cannot be used"),
    ],
)
def test_a_process_that_measured_nothing_is_an_error_with_a_remedy(code: str, says: str) -> None:
    with pytest.raises(WorkerFailed, match=says):
        read_measured([sys.executable, "-c", code])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured_in_a_process_that_ends() -> None:
    speeds: Speeds = measure("cuda", MonotonicClock())
    assert speeds.free_bytes
    assert speeds.read_bytes_per_s > speeds.copy_bytes_per_s > 1e8
    assert torch.cuda.memory_allocated() == 0


def test_one_core_is_left_to_others_and_waiting_threads_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    environment = worker_environment({"HOME": "/somewhere"})
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("3", "passive")
    assert environment["HOME"] == "/somewhere"


def test_what_the_operator_chose_stays() -> None:
    environment = worker_environment({"OMP_NUM_THREADS": "7"})
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("7", "passive")


@pytest.mark.parametrize(
    ("n_cores", "n_threads"),
    [(1, 1), (2, 1), (3, 2), (4, 3), (5, 4), (6, 4), (8, 6), (12, 8), (16, 12), (64, 48)],
)
def test_layers_divide_evenly_among_the_threads_of_a_step(n_cores: int, n_threads: int) -> None:
    assert threads_beside_others(n_cores) == n_threads


def test_a_malformed_frame_ends_the_worker_and_names_who_sent_it() -> None:
    with real_worker() as (worker, inbox):
        worker._frames.send(b"\x80\x05\x95 a pickle")
        while not isinstance(report := inbox.get(timeout=WAIT_S), Broken):
            pass
        assert "the front sent" in report.detail
        assert "bytes that are not a command" in report.detail


LIAR = """
import socket, struct, sys
end = socket.socket(fileno=int(sys.argv[1]))
end.sendall(LIE)
end.recv(1)
"""


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ('struct.pack("<I", 4) + bytes([0x92, 0x00, 0x91, 0x05])', "sent 4 bytes that are not reports"),
        ('struct.pack("<I", 2**32 - 1)', "sent a frame of 4294967295 bytes, longer than"),
    ],
)
def test_what_a_worker_sends_cannot_crash_the_front(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lie: str, says: str
) -> None:
    (tmp_path / "liar.py").write_text(LIAR.replace("LIE", lie))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(worker_main, "__name__", "liar")
    inbox: SimpleQueue[Report] = SimpleQueue()
    worker = ProcessWorker(config("cpu"), into(inbox))
    try:
        report = inbox.get(timeout=WAIT_S)
        assert isinstance(report, Broken)
        assert f"worker process {worker.pid} {says}" in report.detail
    finally:
        worker.kill()
        worker.close()


def test_a_command_that_no_frame_can_hold_is_refused_and_the_worker_goes_on() -> None:
    facts = ModelFacts(ModelId("m"), (Image(ImageId("m"), 1),), KvShape(1, 1, 1, 1, 1), 10**30, 1)
    with real_worker() as (worker, inbox):
        with pytest.raises(NotServable, match="Register cannot be sent to a worker"):
            worker.send(Order(Ticket(2), Register(facts, "somewhere")))
        worker.send(Order(Ticket(1), AskTrace(1.0)))
        while not isinstance(report := inbox.get(timeout=WAIT_S), Traced):
            assert not isinstance(report, Broken)
