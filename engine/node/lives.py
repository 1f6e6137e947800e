"""The lives of executors: starting them, replacing those that break, and giving a device that keeps breaking
a rest.

    start ──▶ STARTING ─ ready ─▶ SERVING ─ broke ─▶ STARTING, at once
                                     broke again and again ─▶ OUT ─ after a growing wait ─▶ STARTING
"""

import logging
from collections.abc import Callable, Iterable

from tokenmux.core.clock import Clock
from tokenmux.core.facts import InstanceId
from tokenmux.core.phases import DeviceState
from tokenmux.messages.launches import AddModel
from tokenmux.node.executor_port import ExecutorFactory
from tokenmux.node.node_device import NodeDevice
from tokenmux.processes.restarts import RestartLimits

logger = logging.getLogger(__name__)

SPAWN_S = 60.0
"""An executor says within this time how long it will take to start."""


class Lives:
    """Starts executors; see the module."""

    def __init__(
        self,
        factory: ExecutorFactory,
        host_kv: int,
        clock: Clock,
        limits: RestartLimits,
        models: Callable[[], Iterable[AddModel]],
        n_devices: int,
    ) -> None:
        """`host_kv` is the descriptor of the memory for paged-out KV; `models` are what a new executor is
        told first."""
        self._factory = factory
        self._host_kv = host_kv
        self._clock = clock
        self._limits = limits
        self._models = models
        self._n_devices = n_devices
        self._waiting: dict[InstanceId, tuple[float, NodeDevice]] = {}
        """Devices without an executor, and when to start one."""
        self._began_s: dict[InstanceId, float] = {}
        self._n_short_lives: dict[InstanceId, int] = {}

    @property
    def due_s(self) -> float | None:
        """When to call `start_due`; None if no device waits."""
        return min((due_s for due_s, _ in self._waiting.values()), default=None)

    def state_of(self, device: NodeDevice) -> DeviceState:
        """What the pool does with a device that is not being drained."""
        if device.ready:
            return DeviceState.SERVING
        due_s, _ = self._waiting.get(device.index, (0.0, device))
        return DeviceState.OUT if due_s > self._clock.now_s() else DeviceState.STARTING

    def start(self, device: NodeDevice) -> str:
        """Start the executor of a device. Returns why that is impossible now, if it is."""
        index = device.index
        self._began_s[index] = self._clock.now_s()
        try:
            port = self._factory(index, device.setup, self._host_kv, n_devices=self._n_devices)
        except OSError as error:
            logger.error("the executor of device %d cannot be started: %s", index, error)
            return f"its executor cannot be started: {error}"
        device.began(port, SPAWN_S)
        for model in self._models():
            device.say(model)
        device.flush()
        return ""

    def broke(self, device: NodeDevice, detail: str) -> None:
        """An executor has ended: start another one, now or later."""
        index, now_s = device.index, self._clock.now_s()
        lived_s = now_s - self._began_s[index]
        n = self._n_short_lives.get(index, 0) + 1 if lived_s < self._limits.window_s else 1
        self._n_short_lives[index] = n
        wait_s = self._limits.wait_s(n)
        device.n_deaths += 1
        device.fault = detail
        if device.state not in (DeviceState.DRAINING, DeviceState.DRAINED):
            device.state = DeviceState.OUT if wait_s else DeviceState.STARTING
        if wait_s:
            logger.error("device %d broke %d times in a row; it is tried again in %g s", index, n, wait_s)
        self._waiting[index] = (now_s + wait_s, device)

    def start_due(self) -> None:
        """Start the executors whose time has come."""
        now_s = self._clock.now_s()
        for index, (due_s, device) in list(self._waiting.items()):
            if due_s <= now_s:
                del self._waiting[index]
                fault = self.start(device)
                if fault:
                    self.broke(device, fault)

    def prepare(self, *, is_quiet: bool) -> None:
        """Get ready for the next start, unless a device waits for one now; called once a second."""
        if not self._waiting:
            self._factory.prepare(n_devices=self._n_devices, is_quiet=is_quiet)

    def forget(self, device: NodeDevice) -> None:
        """The device has left the pool."""
        for known in (self._waiting, self._began_s, self._n_short_lives):
            known.pop(device.index, None)
