"""A worker in a process of its own, and one that cannot begin."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import pytest
import torch

from tokenmux.core.errors import ConfigError, WorkerFailed
from tokenmux.core.facts import DeviceFacts, HostFacts
from tokenmux.executor.assemble import DeviceKind, WorkerSetup
from tokenmux.executor.calibrate import Speeds, measure
from tokenmux.executor.monotonic_clock import MonotonicClock
from tokenmux.executor.worker import MAX_UNSENT, ProcessWorker, _modest_threads, threads_beside_others
from tokenmux.messages.commands import AskTrace
from tokenmux.messages.reports import Alive, Broken, FromWorker, Traced

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
        pytest.param(config("cuda"), "or say `kind: cpu`", id="no GPU", marks=NO_GPU),
        pytest.param(config("cuda", 1 << 50), "lower device.arena", id="no room", marks=GPU),
    ],
)
def test_a_worker_whose_device_cannot_be_opened_says_why_and_ends(of: WorkerSetup, remedy: str) -> None:
    inbox: SimpleQueue[FromWorker] = SimpleQueue()
    worker = ProcessWorker(of, inbox.put)
    try:
        message = inbox.get(timeout=WAIT_S)
        assert isinstance(message, Broken)
        assert message.detail.startswith("the device cannot be used: ")
        assert remedy in message.detail
        assert isinstance(inbox.get(timeout=WAIT_S), Broken), "and that the process is gone"
    finally:
        worker.close()


@contextmanager
def real_worker() -> Iterator[tuple[ProcessWorker, SimpleQueue[FromWorker]]]:
    """A worker process that has begun to serve."""
    inbox: SimpleQueue[FromWorker] = SimpleQueue()
    worker = ProcessWorker(config("cpu"), inbox.put)
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
        worker.send(AskTrace(1, 1.0))
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
        worker.send(AskTrace(ticket, 1.0))


def test_the_processor_is_measured() -> None:
    speeds = measure("cpu", MonotonicClock())
    assert min(speeds.copy_bytes_per_s, speeds.read_bytes_per_s, speeds.flops_per_s) > 1e6
    assert (speeds.name, speeds.free_bytes) == ("cpu", None)


@NO_GPU
def test_a_gpu_that_is_not_there_is_not_measured() -> None:
    with pytest.raises(ConfigError, match="or say `kind: cpu`"):
        measure("cuda", MonotonicClock())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured_in_a_process_that_ends() -> None:
    speeds: Speeds = measure("cuda", MonotonicClock())
    assert speeds.free_bytes
    assert speeds.read_bytes_per_s > speeds.copy_bytes_per_s > 1e8
    assert torch.cuda.memory_allocated() == 0


def test_one_core_is_left_to_others_and_waiting_threads_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    with _modest_threads():
        assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("3", "passive")
    assert "OMP_NUM_THREADS" not in os.environ
    assert "OMP_WAIT_POLICY" not in os.environ


def test_what_the_operator_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with _modest_threads():
        assert os.environ["OMP_NUM_THREADS"] == "7"
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(
    ("n_cores", "n_threads"),
    [(1, 1), (2, 1), (3, 2), (4, 3), (5, 4), (6, 4), (8, 6), (12, 8), (16, 12), (64, 48)],
)
def test_layers_divide_evenly_among_the_threads_of_a_step(n_cores: int, n_threads: int) -> None:
    assert threads_beside_others(n_cores) == n_threads
