"""A node in the caller's thread, with its executors in the same process, on real (small) devices.

It goes the way that a server's node goes, without processes and sockets. What a call begins is done when it
returns, so that a benchmark's clock stops at the right event, and a test can look into the node's books.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from tokenmux.core.facts import FIRST_INSTANCE, InstanceId, ModelId
from tokenmux.core.phases import Residency
from tokenmux.executor.executor import Executor
from tokenmux.messages.commands import Command, Load, Order, Register, Ticket, Unload
from tokenmux.messages.completions import Completions
from tokenmux.messages.launches import Instructions
from tokenmux.messages.reports import Report
from tokenmux.messages.setups import DeviceSetup, ExecutorSetup, NodeSetup
from tokenmux.models.catalogue.entry import Entry
from tokenmux.node.node import Node
from tokenmux.processes.monotonic_clock import MonotonicClock
from tokenmux.scheduler.instance.instance import Instance

WAIT_S = 120.0
"""No operation of a test or a benchmark takes longer than this."""


class _ExecutorHere:
    """An executor in this process, as the node sees it. `end` is called once it has ended."""

    def __init__(self, executor: Executor, end: Callable[[], None]) -> None:
        self.executor = executor
        self._end = end

    def send(self, instructions: Instructions, descriptors: Sequence[int] = ()) -> None:
        self.executor.carry_out(instructions, deque(os.dup(descriptor) for descriptor in descriptors))

    def kill(self) -> None:
        self.executor.close()
        self._end()


class _Factory:
    """Starts executors in this process; what they say goes into `inbox`, and None when they end."""

    def __init__(self, host_kv_bytes: int) -> None:
        self.inbox: SimpleQueue[tuple[InstanceId, Completions | None]] = SimpleQueue()
        self.executors: dict[InstanceId, _ExecutorHere] = {}
        self._host_kv_bytes = host_kv_bytes

    def __call__(
        self, index: InstanceId, device: DeviceSetup, host_kv: int, *, n_devices: int
    ) -> _ExecutorHere:
        setup = ExecutorSetup(index, device, self._host_kv_bytes)
        executor = Executor(setup, os.dup(host_kv), lambda said: self.inbox.put((index, said)))
        here = _ExecutorHere(executor, lambda: self.inbox.put((index, None)))
        self.executors[index] = here
        return here

    def prepare(self, *, n_devices: int, is_quiet: bool) -> None:
        """Do nothing: an executor here needs no time to start."""


class DrivenNode:
    """The node, its executors and what they say. Completions wait until `turn` takes them."""

    def __init__(self, setup: NodeSetup) -> None:
        self.said: list[Report] = []
        self.clock = MonotonicClock()
        self._factory = _Factory(setup.host_kv_bytes)
        self.node = Node(setup, self.clock, self._factory, self.said.extend)
        self.node.start()
        while not all(device.ready for device in self.node.devices.values()):
            self.turn()

    @property
    def executor(self) -> Executor:
        """That of the first device."""
        return self._factory.executors[FIRST_INSTANCE].executor

    @property
    def instance(self) -> Instance:
        """That of the first device."""
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

    def turns_until(self, at_s: float) -> None:
        """Take turns until this time."""
        while (left_s := at_s - self.clock.now_s()) > 0:
            with suppress(Empty):
                self.turn(left_s)

    def turn(self, wait_s: float = WAIT_S) -> None:
        """Wait for one message of an executor and carry out what follows from it. Raises Empty if there is
        none within `wait_s`."""
        index, said = self._factory.inbox.get(timeout=wait_s)
        if said is None:
            self.node.ended(index, "it was killed")
        else:
            self.node.heard(index, said)
        self.node.pump()

    def kill(self, index: InstanceId) -> None:
        """End the executor of a device, as if its process had died."""
        self._factory.executors[index].kill()

    def close(self) -> None:
        self.node.close()
