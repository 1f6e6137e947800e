"""All executors of a pool compute with as many threads, whenever they are started: others would add up in
another order."""

from collections.abc import Sequence

import pytest

from tokenmux.core.facts import InstanceId
from tokenmux.messages.commands import AddDevice, Order, Ticket
from tokenmux.messages.launches import Instructions
from tokenmux.messages.setups import DeviceSetup, NodeSetup
from tokenmux.node.node import Node
from tokenmux.simulator.virtual_clock import VirtualClock
from tokenmux.testing.builders import make_device, make_host


class Nothing:
    """An executor that never says anything."""

    def send(self, instructions: Instructions, descriptors: Sequence[int] = ()) -> None: ...
    def kill(self) -> None: ...


class Factory:
    def __init__(self) -> None:
        self.n_sharing: list[int] = []

    def __call__(self, index: InstanceId, device: DeviceSetup, host_kv: int, *, n_devices: int) -> Nothing:
        self.n_sharing.append(n_devices)
        return Nothing()

    def prepare(self, *, n_devices: int, is_quiet: bool) -> None: ...


DEVICE = DeviceSetup(make_device())


@pytest.mark.parametrize(
    ("n_sharing", "expected"), [(0, 2), (3, 3)], ids=["a new pool", "a node that replaces one"]
)
def test_a_device_that_is_added_computes_with_as_many_threads_as_the_others(
    n_sharing: int, expected: int
) -> None:
    factory = Factory()
    setup = NodeSetup((DEVICE, DEVICE), make_host(), 10_000, n_sharing=n_sharing)
    node = Node(setup, VirtualClock(), factory, lambda _: None)
    node.start()
    node.receive(Order(Ticket(1), AddDevice(DEVICE)))
    node.pump()
    assert factory.n_sharing == [expected] * 3
    node.close()
