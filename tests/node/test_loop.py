"""A node's one thread, between a front and real processes of executors that compute nothing: what becomes of
those that die, send garbage, or read nothing."""

import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread

import psutil
import pytest

from tokenmux.core.facts import DeviceFacts, HostFacts
from tokenmux.core.phases import DeviceState
from tokenmux.messages.codec import ORDERS, REPORTS
from tokenmux.messages.commands import AskTrace, Command, Order, Shutdown, Ticket
from tokenmux.messages.frame_socket import FrameSocket, PatientSocket
from tokenmux.messages.reports import Alive, Broken, NodeStatus, Report, Traced
from tokenmux.messages.setups import DeviceSetup, NodeSetup
from tokenmux.node import executor_processes
from tokenmux.node.executor_process import ExecutorProcess
from tokenmux.node.executor_processes import ExecutorProcesses
from tokenmux.node.loop import NodeLoop
from tokenmux.node.node import Node
from tokenmux.processes.monotonic_clock import MonotonicClock

WAIT_S = 60.0
MB = 1 << 20

EXECUTOR = """
import os, select, socket, sys, time
from tokenmux.messages.codec import COMPLETIONS, EXECUTOR_SETUP, INSTRUCTIONS
from tokenmux.messages.completions import ExecutorAlive, ExecutorReady
from tokenmux.messages.frame_socket import FrameSocket

end = socket.socket(fileno=int(sys.argv[1]))
frames = FrameSocket(end)
setup = EXECUTOR_SETUP.decode(frames.receive())
once = f"{os.path.dirname(__file__)}/{setup.instance}"
is_first = not os.path.exists(once)
open(once, "w").close()
frames.send(COMPLETIONS.encode((ExecutorReady(),)))
match setup.device.facts.name if is_first else "good":
    case "exits":
        os._exit(3)
    case "garbage":
        frames.send(b"no completions")
    case "too long":
        end.sendall(b"\\xff\\xff\\xff\\xff")
    case "closes":
        end.close()
        time.sleep(600)
while True:
    if select.select([frames], [], [], 0.2)[0]:
        INSTRUCTIONS.decode(frames.receive())
    frames.send(COMPLETIONS.encode((ExecutorAlive(),)))
"""


class Front:
    """The front's end."""

    def __init__(self, end: socket.socket, node_thread: Thread) -> None:
        end.settimeout(WAIT_S)
        self.node_thread = node_thread
        self.frames = FrameSocket(end)
        self.said: list[Report] = []

    def send(self, command: Command, ticket: int = 0) -> None:
        self.frames.send(ORDERS.encode(Order(Ticket(ticket), command)))

    def until(self, met: Callable[[Report], bool]) -> Report:
        while True:
            for report in REPORTS.decode(self.frames.receive()).reports:
                self.said.append(report)
                if met(report):
                    return report

    def until_states(self, *states: DeviceState, n_deaths: int = 0) -> NodeStatus:
        def met(report: Report) -> bool:
            return (
                isinstance(report, NodeStatus)
                and tuple(device.state for device in report.devices) == states
                and sum(device.n_deaths for device in report.devices) == n_deaths
            )

        report = self.until(met)
        assert isinstance(report, NodeStatus)
        return report


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "executor_double.py").write_text(EXECUTOR)
    monkeypatch.syspath_prepend(tmp_path)

    def start(*, n_devices: int) -> ExecutorProcess:
        return ExecutorProcess(n_devices=n_devices, module="executor_double")

    monkeypatch.setattr(executor_processes, "ExecutorProcess", start)


FACTS = DeviceFacts("good", MB, MB, 1e9, 1e9, 1e9, 1e9, slab_bytes=MB // 16)


@contextmanager
def running(*names: str, silent_s: float = 10.0) -> Iterator[Front]:
    """A node with devices of these names, in a thread."""
    setups = tuple(DeviceSetup(replace(FACTS, name=name)) for name in names)
    setup = NodeSetup(setups, HostFacts(MB, 1e9), MB, silent_s=silent_s)
    ours, theirs = socket.socketpair()
    loop, clock = NodeLoop(PatientSocket(theirs)), MonotonicClock()
    executors = ExecutorProcesses(setup.host_kv_bytes, clock, loop.watch)
    node = Node(setup, clock, executors, loop.emit)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            loop.run(node, clock, executors)
        except BaseException as error:  # noqa: BLE001 - the test has to see it
            errors.append(error)

    thread = Thread(target=run)
    thread.start()
    front = Front(ours, thread)
    try:
        yield front
    finally:
        front.frames.close()
        thread.join(WAIT_S)
        assert not thread.is_alive(), "it ends with its front"
        executors.close()
        node.close()
        theirs.close()
        for executor in loop._executors:  # a node's process ends with them
            executor.kill()
            executor.close()
    assert errors == []


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("exits", "its executor ended with status 3"),
        ("garbage", "it sent 14 bytes that are not completions"),
        ("too long", "it sent a frame of 4294967295 bytes, longer than"),
        ("closes", "its executor ended by signal 9"),
    ],
)
def test_an_executor_that_ends_or_sends_garbage_is_replaced_alone(
    module: None, name: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running("good", name) as front:
        front.until_states(DeviceState.SERVING, DeviceState.SERVING, n_deaths=1)
        status = [m for m in front.said if isinstance(m, NodeStatus)][-1]
        assert [device.n_deaths for device in status.devices] == [0, 1]
        front.send(AskTrace(1.0), ticket=7)
        front.until(lambda report: isinstance(report, Traced) and report.ticket == 7)
    assert fault in caplog.text
    assert not [m for m in front.said if isinstance(m, Broken)]


def test_an_executor_that_is_stopped_is_killed_within_its_silence(module: None) -> None:
    with running("good", "good", silent_s=1.0) as front:
        front.until_states(DeviceState.SERVING, DeviceState.SERVING)
        known = [c for c in psutil.Process().children() if "executor_double" in c.cmdline()]
        os.kill(known[0].pid, signal.SIGSTOP)
        front.until_states(DeviceState.SERVING, DeviceState.SERVING, n_deaths=1)
        assert not known[0].is_running()


def test_the_loop_beats_while_it_has_nothing_to_do_and_ends_when_asked(module: None) -> None:
    with running("good") as front:
        front.until_states(DeviceState.SERVING)
        for _ in range(3):
            front.until(lambda report: isinstance(report, Alive))
        front.send(Shutdown())
        front.node_thread.join(WAIT_S)
        assert not front.node_thread.is_alive()


def test_what_is_no_command_breaks_the_node_and_says_who_sent_it(module: None) -> None:
    with running("good") as front:
        front.until_states(DeviceState.SERVING)
        front.frames.send(b"nonsense")
        broken = front.until(lambda report: isinstance(report, Broken))
        assert isinstance(broken, Broken)
        assert broken.detail.startswith("the front sent 8 bytes that are not")


def test_a_front_that_reads_slowly_gets_everything_and_holds_up_nothing(module: None) -> None:
    with running("good") as front:
        front.until_states(DeviceState.SERVING)
        n = 20_000
        for ticket in range(n):
            front.send(AskTrace(0.0), ticket)
            if not select.select([], [front.frames], [], 0.0)[1]:
                break
        else:
            ticket = n
        last = front.until(lambda report: isinstance(report, Traced) and report.ticket == ticket - 1)
        assert isinstance(last, Traced)
        tickets = [report.ticket for report in front.said if isinstance(report, Traced)]
        assert tickets == list(range(ticket))
