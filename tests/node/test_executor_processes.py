"""Processes of executors: one in reserve, and what is left when none can be started."""

import os
from pathlib import Path

import pytest

from tokenmux.core.facts import DeviceFacts, InstanceId
from tokenmux.messages.setups import DeviceSetup
from tokenmux.node.executor_process import ExecutorProcess
from tokenmux.node.executor_processes import QUIET_WAIT_S, RETRY_S, ExecutorProcesses
from tokenmux.processes import shared_memory
from tokenmux.simulator.virtual_clock import VirtualClock

DEVICE = DeviceSetup(DeviceFacts("some", 1 << 20, 0, 1e9, 1e9, 1e9, 1e9))


class Spare:
    """An executor that has been started, and no process."""

    def __init__(self) -> None:
        self.given: list[InstanceId] = []
        self.is_dead = False

    def give(self, index: InstanceId, *_: object) -> None:
        self.given.append(index)

    def kill(self) -> None:
        self.is_dead = True


class Reserve(ExecutorProcesses):
    """Starts spares, if the system lets it. `started` are all."""

    def __init__(self, clock: VirtualClock) -> None:
        self.started: list[Spare] = []
        self.refuses = False
        super().__init__(0, clock, lambda _: None)

    def _start(self, n_devices: int) -> ExecutorProcess:
        if self.refuses:
            raise OSError("too many processes")
        self.started.append(Spare())
        return self.started[-1]  # type: ignore[return-value]


def begin(reserve: Reserve, index: int, n_devices: int = 1) -> None:
    reserve(InstanceId(index), DEVICE, 0, n_devices=n_devices)


def test_the_next_device_gets_the_process_in_reserve() -> None:
    reserve = Reserve(VirtualClock())
    begin(reserve, 0)
    reserve.prepare(n_devices=1, is_quiet=True)
    reserve.prepare(n_devices=1, is_quiet=True)
    assert len(reserve.started) == 2
    begin(reserve, 0)
    assert len(reserve.started) == 2
    assert reserve.started[1].given == [0]
    begin(reserve, 0)
    assert len(reserve.started) == 3, "the reserve is spent"


def test_the_reserve_waits_for_a_quiet_moment_but_not_for_ever() -> None:
    clock = VirtualClock()
    reserve = Reserve(clock)
    begin(reserve, 0)
    reserve.prepare(n_devices=1, is_quiet=False)
    clock.pass_to(QUIET_WAIT_S - 1)
    reserve.prepare(n_devices=1, is_quiet=False)
    assert len(reserve.started) == 1
    clock.pass_to(QUIET_WAIT_S)
    reserve.prepare(n_devices=1, is_quiet=False)
    assert len(reserve.started) == 2


def test_a_reserve_with_the_threads_of_another_number_of_devices_is_replaced() -> None:
    reserve = Reserve(VirtualClock())
    reserve.prepare(n_devices=1, is_quiet=True)
    reserve.prepare(n_devices=2, is_quiet=True)
    assert [spare.is_dead for spare in reserve.started] == [True, False]
    begin(reserve, 0, n_devices=2)
    assert reserve.started[1].given == [0]


def test_a_reserve_that_ends_by_itself_or_cannot_be_started_is_tried_again_later() -> None:
    clock = VirtualClock()
    reserve = Reserve(clock)
    reserve.prepare(n_devices=1, is_quiet=True)
    reserve.ended(reserve.started[0])  # type: ignore[arg-type]
    reserve.refuses = True
    reserve.prepare(n_devices=1, is_quiet=False)
    reserve.prepare(n_devices=1, is_quiet=True)
    assert len(reserve.started) == 1
    reserve.refuses = False
    clock.pass_to(RETRY_S)
    reserve.prepare(n_devices=1, is_quiet=False)
    assert len(reserve.started) == 2
    reserve.close()
    assert reserve.started[1].is_dead


def test_a_process_that_nobody_can_watch_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor for its end, nothing stays behind."""

    def refuse(_: int) -> int:
        raise OSError("too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="too many open files"):
        ExecutorProcess(n_devices=1, module="this")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_dead_process_takes_what_it_is_sent_and_says_how_it_ended() -> None:
    executor = ExecutorProcess(n_devices=1, module="this")  # which ends at once
    host_kv = shared_memory.create_shared("kv", 100)
    try:
        executor._process.wait(30)
        executor.give(InstanceId(3), DEVICE, host_kv, 100)
        executor.send(())
        executor.flush()
        executor.kill()
        assert executor.close() == "its executor ended with status 0"
    finally:
        os.close(host_kv)
