"""Where the front gets devices from that operators add: `tokenmux.server.machine` in a server."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from tokenmux.core.memory_budgets import DeviceKind
from tokenmux.messages.setups import DeviceSetup, PagedKv


@dataclass(frozen=True, slots=True)
class WantedDevice:
    """A device that an operator asks for. `gpu` is an index or UUID; empty for the next one that is free."""

    kind: DeviceKind | None = None
    """None for that of the pool's first device."""
    arena_bytes: int = 0
    """Size of its arena; 0 for that of a device like it, or most of the free memory of its GPU."""
    gpu: str = ""
    paged_kv: PagedKv | None = None


class DeviceSource(Protocol):
    """The machine, as far as the front needs it."""

    def make(self, wanted: WantedDevice, present: Collection[DeviceSetup]) -> DeviceSetup:
        """A device to add to the present ones. May block for seconds. Raises InvalidRequest, ConfigError,
        and DoesNotFit if there is too little memory."""
        ...

    def check_resize(self, device: DeviceSetup, arena_bytes: int) -> None:
        """Raise DoesNotFit if the machine has too little memory for the new size of a device's arena."""
        ...
