"""What a node needs of an executor, so that tests can use one on virtual time.

`tokenmux.node.executor_process.ExecutorProcess` is the real one.
"""

from collections.abc import Sequence
from typing import Protocol

from tokenmux.core.facts import InstanceId
from tokenmux.messages.launches import Instructions
from tokenmux.messages.setups import DeviceSetup


class ExecutorPort(Protocol):
    """An executor that has been started. What it says reaches the node as `Node.heard`, and its end as
    `Node.ended`."""

    def send(self, instructions: Instructions, descriptors: Sequence[int] = ()) -> None:
        """Send instructions without waiting, with descriptors that stay open until they are sent. What a dead
        executor is sent is dropped."""
        ...

    def kill(self) -> None:
        """End it now, whatever it is doing. `Node.ended` follows."""
        ...


class ExecutorFactory(Protocol):
    """Starts executors."""

    def __call__(
        self, index: InstanceId, device: DeviceSetup, host_kv: int, *, n_devices: int
    ) -> ExecutorPort:
        """Start the executor of a device; `host_kv` is the descriptor of the memory for paged-out KV, and
        `n_devices` how many devices share the machine's cores. Raises OSError if no process can be
        started."""
        ...

    def prepare(self, *, n_devices: int, is_quiet: bool) -> None:
        """Get ready for the next start, if this is a good moment: nothing runs if it `is_quiet`. Called once
        a second while every device has an executor."""
        ...
