"""A node in the caller's thread, with one executor in the same process, on a device with real weights.

What a call begins is done when it returns, so that a benchmark's clock stops at the right event.
"""

import os
import sys
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue

from tokenmux.core.facts import FIRST_INSTANCE, DeviceFacts, HostFacts, InstanceId, ModelId
from tokenmux.core.memory_budgets import DeviceKind
from tokenmux.core.phases import Residency
from tokenmux.executor.executor import Executor
from tokenmux.messages.commands import Command, Load, Order, Register, Ticket, Unload
from tokenmux.messages.completions import Completions
from tokenmux.messages.launches import Instructions
from tokenmux.messages.reports import Report
from tokenmux.messages.setups import DeviceSetup, ExecutorSetup, NodeSetup
from tokenmux.models.catalogue.entry import Entry
from tokenmux.node.node import Node
from tokenmux.processes.executor_environment import executor_environment
from tokenmux.processes.monotonic_clock import MonotonicClock
from tokenmux.scheduler.instance.instance import Instance

WAIT_S = 120.0
"""No operation of a benchmark takes longer than this."""


def run_as_an_executor_would(module: str) -> None:
    """Run this program, `python -m module`, again with the environment of an executor's process, unless it
    has that: some of it is read by libraries when they are loaded."""
    theirs = executor_environment(os.environ)
    if any(os.environ.get(name) != value for name, value in theirs.items()):
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], theirs)


class _Port:
    """An executor in this process, as the node sees it."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def send(self, instructions: Instructions, descriptors: Sequence[int] = ()) -> None:
        self._executor.carry_out(instructions, deque(os.dup(descriptor) for descriptor in descriptors))

    def kill(self) -> None:
        self._executor.close()


class _Factory:
    """Starts executors in this process; what they say goes into `inbox`."""

    def __init__(self) -> None:
        self.inbox: SimpleQueue[Completions] = SimpleQueue()
        self.executor: Executor

    def __call__(self, index: InstanceId, device: DeviceSetup, host_kv: int, *, n_devices: int) -> _Port:
        setup = ExecutorSetup(index, device, device.facts.host_kv_bytes)
        self.executor = Executor(setup, os.dup(host_kv), self.inbox.put)
        return _Port(self.executor)

    def prepare(self, *, n_devices: int, is_quiet: bool) -> None:
        """Do nothing: an executor here needs no time to start."""


class DrivenNode:
    """The node, its executor and what they say. Completions wait until `turn` takes them."""

    def __init__(self, facts: DeviceFacts, host: HostFacts, kind: DeviceKind = "cpu") -> None:
        self.said: list[Report] = []
        self.clock = MonotonicClock()
        self._factory = _Factory()
        setup = NodeSetup((DeviceSetup(facts, kind),), host, facts.host_kv_bytes)
        self.node = Node(setup, self.clock, self._factory, self.said.extend)
        self.node.start()
        self.turn()

    @property
    def executor(self) -> Executor:
        return self._factory.executor

    @property
    def instance(self) -> Instance:
        return self.node.pool.instances[FIRST_INSTANCE]

    def tell(self, command: Command) -> None:
        """Enter a command and begin what it asks for."""
        self.node.receive(Order(Ticket(0), command))
        self.node.pump()

    def register(self, entry: Entry) -> None:
        """Register the model and wait until its weights are in host memory and its steps are recorded."""
        self.tell(Register(entry.facts, str(entry.path)))
        self.run_until(entry.facts.id, Residency.HOST)
        self.executor.models.settle()

    def load(self, model: ModelId) -> None:
        """Bring the model onto the device."""
        self.tell(Load(model))
        self.run_until(model, Residency.RESIDENT)

    def unload(self, model: ModelId) -> None:
        """Take the model off the device."""
        self.tell(Unload(model))
        self.run_until(model, Residency.HOST)

    def run_until(self, model: ModelId, residency: Residency) -> None:
        """Take turns until the model's weights are there."""
        while self.instance.models[model].residency is not residency:
            self.turn()

    def turn(self) -> None:
        """Wait for one message of the executor and carry out what follows from it."""
        self.node.heard(FIRST_INSTANCE, self._factory.inbox.get(timeout=WAIT_S))
        self.node.pump()

    def close(self) -> None:
        self.node.close()
