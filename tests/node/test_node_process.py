"""A node in a process of its own, with its executors below it, and one that cannot begin."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import msgspec
import psutil
import pytest
import torch

from tokenmux.core.errors import NotServable, ProcessFailed
from tokenmux.core.facts import DeviceFacts, HostFacts, Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.core.memory_budgets import DeviceKind
from tokenmux.core.phases import DeviceState
from tokenmux.messages.codec import NODE_SETUP, REPORTS
from tokenmux.messages.commands import AskTrace, Order, Register, Ticket
from tokenmux.messages.frame_socket import FrameSocket, framed
from tokenmux.messages.reports import Alive, Broken, NodeStatus, Report, Reports, Traced
from tokenmux.messages.setups import DeviceSetup, NodeSetup
from tokenmux.node import node_process
from tokenmux.node.node_main import serve_front
from tokenmux.node.node_process import MAX_UNSENT, NodeProcess
from tokenmux.processes import available_memory
from tokenmux.processes.allocation_time import allocation_s

WAIT_S = 60.0
MB = 1 << 20
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


def config(kind: DeviceKind, arena_bytes: int = MB) -> NodeSetup:
    facts = DeviceFacts("some", arena_bytes, MB, 1e9, 1e9, 1e9, 1e9, slab_bytes=MB // 16)
    return NodeSetup((DeviceSetup(facts, kind),), HostFacts(MB, 1e9), facts.host_kv_bytes)


@pytest.mark.parametrize(
    ("of", "remedy"),
    [
        pytest.param(config("cuda"), "or set `kind: cpu`", id="no GPU", marks=NO_GPU),
        pytest.param(config("cuda", 1 << 50), "lower device.arena", id="no room", marks=GPU),
    ],
)
def test_a_device_that_cannot_be_opened_is_shown_with_the_reason_and_the_node_lives(
    of: NodeSetup, remedy: str
) -> None:
    inbox: SimpleQueue[Report] = SimpleQueue()
    node = NodeProcess(of, into(inbox))
    try:
        fault = ""
        while not fault:
            message = inbox.get(timeout=WAIT_S)
            assert not isinstance(message, Broken)
            if isinstance(message, NodeStatus):
                fault = message.devices[0].fault
                assert message.devices[0].state is DeviceState.STARTING
        assert fault.startswith("the device cannot be used: ")
        assert remedy in fault
    finally:
        node.close()


def test_a_node_without_the_memory_for_its_kv_says_so_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available_memory, "available_bytes", lambda: MB // 2)
    ours, theirs = socket.socketpair()
    front = FrameSocket(ours)
    ours.sendall(framed(NODE_SETUP.encode(config("cpu"))))
    with theirs:
        serve_front(theirs)
    assert REPORTS.decode(front.receive()).reports == [Alive(allocation_s(MB))]
    (broken,) = REPORTS.decode(front.receive()).reports
    assert isinstance(broken, Broken)
    assert broken.detail.startswith("the node cannot start: 1.0 MiB of memory cannot be allocated")
    front.close()


def into(inbox: "SimpleQueue[Report]") -> Callable[[Reports], None]:
    def put(reports: Reports) -> None:
        for report in reports.reports:
            inbox.put(report)

    return put


@contextmanager
def real_node() -> Iterator[tuple[NodeProcess, SimpleQueue[Report]]]:
    """A node process that has begun to serve."""
    inbox: SimpleQueue[Report] = SimpleQueue()
    node = NodeProcess(config("cpu"), into(inbox))
    try:
        while not isinstance(inbox.get(timeout=WAIT_S), Alive):
            pass
        yield node, inbox
    finally:
        node.kill()
        node.close()


def test_signals_to_the_group_are_the_fronts_to_answer() -> None:
    with real_node() as (node, inbox):
        assert node.pid is not None
        os.kill(node.pid, signal.SIGTERM)
        os.kill(node.pid, signal.SIGINT)
        node.send(Order(Ticket(1), AskTrace(1.0)))
        while not isinstance(message := inbox.get(timeout=WAIT_S), Traced):
            assert not isinstance(message, Broken)


def test_sending_to_a_stopped_node_never_blocks_and_it_can_be_ended() -> None:
    """More than any pipe holds; then more than may wait. A test that blocks here ends by pytest's own
    limit."""
    with real_node() as (node, _):
        assert node.pid is not None
        os.kill(node.pid, signal.SIGSTOP)
        with pytest.raises(ProcessFailed, match="unread"):
            flood(node, 2 * MAX_UNSENT)


def flood(node: NodeProcess, n: int) -> None:
    for ticket in range(n):
        node.send(Order(Ticket(ticket), AskTrace(1.0)))


def test_a_malformed_frame_ends_the_node_and_names_who_sent_it() -> None:
    with real_node() as (node, inbox):
        node._frames.send(b"\x80\x05\x95 a pickle")
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
def test_what_a_node_sends_cannot_crash_the_front(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lie: str, says: str
) -> None:
    (tmp_path / "liar.py").write_text(LIAR.replace("LIE", lie))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(node_process, "NODE_MODULE", "liar")
    inbox: SimpleQueue[Report] = SimpleQueue()
    node = NodeProcess(config("cpu"), into(inbox))
    try:
        report = inbox.get(timeout=WAIT_S)
        assert isinstance(report, Broken)
        assert f"node {node.pid} {says}" in report.detail
    finally:
        node.kill()
        node.close()


def test_a_command_that_no_frame_can_hold_is_refused_and_the_node_goes_on() -> None:
    facts = ModelFacts(ModelId("m"), (Image(ImageId("m"), 1),), KvShape(1, 1, 1, 1, 1), 10**30, 1)
    with real_node() as (node, inbox):
        with pytest.raises(NotServable, match="Register cannot be sent to a node"):
            node.send(Order(Ticket(2), Register(facts, "somewhere")))
        node.send(Order(Ticket(1), AskTrace(1.0)))
        while not isinstance(report := inbox.get(timeout=WAIT_S), Traced):
            assert not isinstance(report, Broken)


@contextmanager
def serving_node(n_devices: int) -> Iterator[tuple[NodeProcess, SimpleQueue[Report]]]:
    """A node whose devices serve."""
    inbox: SimpleQueue[Report] = SimpleQueue()
    setup = config("cpu")
    node = NodeProcess(msgspec.structs.replace(setup, devices=setup.devices * n_devices), into(inbox))
    try:
        until_devices(inbox, [DeviceState.SERVING] * n_devices)
        yield node, inbox
    finally:
        node.kill()
        node.close()


def until_devices(inbox: "SimpleQueue[Report]", states: list[DeviceState], n_deaths: int = 0) -> None:
    """Wait for a status with these states and this many deaths."""
    while True:
        report = inbox.get(timeout=WAIT_S)
        assert not isinstance(report, Broken)
        if isinstance(report, NodeStatus):
            devices = report.devices
            if [d.state for d in devices] == states and sum(d.n_deaths for d in devices) == n_deaths:
                return


def executors_of(node: NodeProcess) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(node.pid).children()
        if "tokenmux.executor.executor_main" in child.cmdline()
    ]


def test_executors_that_are_killed_or_stopped_are_replaced_and_none_outlives_the_node() -> None:
    with serving_node(2) as (node, inbox):
        first, second = executors_of(node)[:2]
        first.kill()
        until_devices(inbox, [DeviceState.SERVING] * 2, n_deaths=1)
        second.suspend()
        until_devices(inbox, [DeviceState.SERVING] * 2, n_deaths=2)
        now = executors_of(node)
        assert first not in now
        assert second not in now
        gone_before = psutil.Process(node.pid).num_fds()
        assert gone_before < 60
        node.kill()
        assert not psutil.wait_procs(now, timeout=WAIT_S)[1], "an executor outlived its node"
