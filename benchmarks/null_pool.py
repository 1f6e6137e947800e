"""A real node over devices that compute nothing, driven by its messages: how long devices wait for it.

The node and its executors are processes of their own, as in a server. The front's side of the socket is this
process, which only counts tokens.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread

import psutil

from benchmarks.null_executor import FOLDER, steps_of
from tokenmux.core.facts import (
    DeviceFacts,
    HostFacts,
    Image,
    ImageId,
    InstanceId,
    KvShape,
    ModelFacts,
    ModelId,
)
from tokenmux.core.request import Request, RequestId
from tokenmux.core.sampling import Sampling
from tokenmux.messages.codec import NODE_SETUP, ORDERS, REPORTS
from tokenmux.messages.commands import Command, Order, Register, Submit, Ticket
from tokenmux.messages.frame_socket import FrameSocket, PatientSocket
from tokenmux.messages.reports import Tokens
from tokenmux.messages.setups import DeviceSetup, NodeSetup
from tokenmux.node.executor_process import ExecutorProcess
from tokenmux.node.executor_processes import ExecutorProcesses
from tokenmux.node.loop import NodeLoop
from tokenmux.node.node import Node
from tokenmux.processes import garbage_collection
from tokenmux.processes.monotonic_clock import MonotonicClock
from tokenmux.simulator.hardware import gpu, instance_facts

MODULE = "benchmarks.null_executor"
HOST_KV_BYTES = 256 << 20
"""Is allocated, and not used: everything fits on the devices."""
HOST = HostFacts(cache_bytes=10**12, fetch_bytes_per_s=1e12)
SHAPE = KvShape(n_layers=28, n_kv_heads=4, head_dim=128, dtype_bytes=2, block_size=16)
N_BYTES, N_PARAMETERS = 15_200_000_000, 7_600_000_000
"""A model of 7B: 9 ms a step on an H100, as measured."""
H100 = replace(
    instance_facts(gpu("H100"), host_kv_bytes=HOST_KV_BYTES), step_overhead_s=0.16e-3 * SHAPE.n_layers
)
STEPS_OF_5_MS = DeviceFacts(
    name="null",
    arena_bytes=80 * 10**9,
    host_kv_bytes=HOST_KV_BYTES,
    copy_in_bytes_per_s=1e15,
    copy_out_bytes_per_s=1e15,
    memory_bytes_per_s=1e18,
    flops_per_s=1e21,
    step_overhead_s=0.005,
)
N_PROMPT, N_OUTPUT = 200, 6000
LOADED_S = 120.0
"""Until all requests have begun."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that are live all the time, spread over models that fit on the devices together."""

    device: DeviceFacts
    n_devices: int
    n_models: int
    n_requests: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """What was seen during one slice of time."""

    idle_share: float
    """Of the time of all devices: between the end of a step and the next step's launch."""
    node_share: float
    """Processor time of the node, of one core."""
    tokens_per_s: float


class NullExecutors(ExecutorProcesses):
    """Starts executors that compute nothing, and keeps none in reserve."""

    def prepare(self, *, n_devices: int, is_quiet: bool) -> None:
        pass

    def _start(self, n_devices: int) -> ExecutorProcess:
        executor = ExecutorProcess(n_devices=n_devices, module=MODULE)
        self._watch(executor)
        return executor


def serve(descriptor: int) -> None:
    """The program of the node's process."""
    with socket.socket(fileno=descriptor) as end:
        setup = NODE_SETUP.decode(FrameSocket(end).receive())
        loop, clock = NodeLoop(PatientSocket(end)), MonotonicClock()
        executors = NullExecutors(setup.host_kv_bytes, clock, loop.watch)
        node = Node(setup, clock, executors, loop.emit)
        garbage_collection.settle()  # as every node does
        try:
            loop.run(node, clock, executors)
        finally:
            executors.close()
            node.close()
    os._exit(0)


class NullPool:
    """The node's process, and what it said; `close` it."""

    def __init__(self, load: Load, folder: Path) -> None:
        self.n_tokens = 0
        self._load = load
        self._folder = folder
        self._begun: set[RequestId] = set()
        self._all_begun = Event()
        ours, theirs = socket.socketpair()
        with theirs:
            code = f"from benchmarks.null_pool import serve; serve({theirs.fileno()})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=(theirs.fileno(),),
                env={
                    **os.environ,
                    FOLDER: str(folder),
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
            )
        self._node = psutil.Process(self._process.pid)
        self._frames = FrameSocket(ours)
        setup = NodeSetup((DeviceSetup(load.device),) * load.n_devices, HOST, HOST_KV_BYTES)
        self._frames.send(NODE_SETUP.encode(setup))
        Thread(target=self._read, name="null-pool-reader", daemon=True).start()

    def begin(self) -> None:
        """Submit all requests, and wait until each has drawn."""
        for i in range(self._load.n_models):
            image = Image(ImageId(f"i{i}"), N_BYTES)
            self._send(Register(ModelFacts(ModelId(f"m{i}"), (image,), SHAPE, 8192, N_PARAMETERS), path=""))
        for i in range(self._load.n_requests):
            model = ModelId(f"m{i % self._load.n_models}")
            request = Request(RequestId(f"r{i}"), model, N_PROMPT, N_OUTPUT, time.monotonic())
            self._send(Submit(request, (0,) * N_PROMPT, Sampling()))
        if not self._all_begun.wait(LOADED_S):
            raise TimeoutError(f"{len(self._begun)} of {self._load.n_requests} requests have begun")

    def watch(self, seconds: float) -> Waiting:
        """Look on for some time."""
        began_s, n_before, times = time.monotonic(), self.n_tokens, self._node.cpu_times()
        time.sleep(seconds)
        ended_s, after = time.monotonic(), self._node.cpu_times()
        idle_s = sum(
            idle_within(list(steps_of(self._folder, InstanceId(i))), began_s, ended_s)
            for i in range(self._load.n_devices)
        )
        took_s = ended_s - began_s
        return Waiting(
            idle_s / (took_s * self._load.n_devices),
            (after.user + after.system - times.user - times.system) / took_s,
            (self.n_tokens - n_before) / took_s,
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._frames.close()

    def _send(self, command: Command) -> None:
        self._frames.send(ORDERS.encode(Order(Ticket(1), command)))

    def _read(self) -> None:
        try:
            while True:
                for report in REPORTS.decode(self._frames.receive()).reports:
                    if isinstance(report, Tokens):
                        self.n_tokens += len(report.token_ids)
                        if report.index == 0:
                            self._begun.add(report.request)
                if len(self._begun) == self._load.n_requests:
                    self._all_begun.set()
        except (EOFError, OSError):
            pass


def idle_within(steps: Sequence[tuple[float, float]], begin_s: float, end_s: float) -> float:
    """Seconds within that time between the end of a step and the beginning of the next one."""
    gaps = (
        (max(ended_s, begin_s), min(received_s, end_s)) for (_, ended_s), (received_s, _) in pairwise(steps)
    )
    return sum(max(0.0, until_s - from_s) for from_s, until_s in gaps)


def measure(load: Load, n_slices: int, slice_s: float = 1.0) -> list[Waiting]:
    """Have the requests begin, then watch slice by slice. The first second is not counted."""
    with tempfile.TemporaryDirectory(prefix="tokenmux-null-") as folder:
        pool = NullPool(load, Path(folder))
        try:
            pool.begin()
            pool.watch(1.0)
            return [pool.watch(slice_s) for _ in range(n_slices)]
        finally:
            pool.close()
