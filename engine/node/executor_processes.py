"""Starts executors, and keeps one in reserve that has loaded its libraries already.

An executor that dies is replaced by the one in reserve, which saves the four seconds that torch and
transformers take to load; then another one is started. It waits for a quiet moment first, because loading
takes a core.
"""

import logging
from collections.abc import Callable

from tokenmux.core.clock import Clock
from tokenmux.core.facts import InstanceId
from tokenmux.messages.setups import DeviceSetup
from tokenmux.node.executor_process import ExecutorProcess

_log = logging.getLogger(__name__)

QUIET_WAIT_S = 30.0
"""How long the reserve waits for a moment in which nothing runs."""

RETRY_S = 60.0
"""How long after a process in reserve has ended by itself another one is started."""


class ExecutorProcesses:
    """`tokenmux.node.executor_port.ExecutorFactory` with a reserve. `watch` is called with every process that
    was started."""

    def __init__(self, host_kv_bytes: int, clock: Clock, watch: Callable[[ExecutorProcess], None]) -> None:
        self._host_kv_bytes = host_kv_bytes
        self._clock = clock
        self._watch = watch
        self._reserve: ExecutorProcess | None = None
        self._n_devices = 0
        self._after_s = clock.now_s() + QUIET_WAIT_S

    def __call__(
        self, index: InstanceId, device: DeviceSetup, host_kv: int, *, n_devices: int
    ) -> ExecutorProcess:
        if self._reserve is not None and self._n_devices == n_devices:
            executor, self._reserve = self._reserve, None
        else:
            executor = self._start(n_devices)
        self._after_s = self._clock.now_s() + QUIET_WAIT_S
        executor.give(index, device, host_kv, self._host_kv_bytes)
        return executor

    def prepare(self, *, n_devices: int, is_quiet: bool) -> None:
        """Start a process in reserve, if there is none and the moment is good; called once a second."""
        if self._reserve is not None and self._n_devices != n_devices:
            self.close()  # its steps would have the wrong number of threads
        if self._reserve is None and (is_quiet or self._clock.now_s() >= self._after_s):
            try:
                self._reserve = self._start(n_devices)
            except OSError as error:
                _log.warning("no executor can be kept in reserve: %s", error)
                self._after_s = self._clock.now_s() + RETRY_S
            self._n_devices = n_devices

    def ended(self, executor: ExecutorProcess) -> None:
        """A process without a device has ended."""
        if executor is self._reserve:
            self._reserve = None
            self._after_s = self._clock.now_s() + RETRY_S

    def close(self) -> None:
        """End the process in reserve."""
        reserve, self._reserve = self._reserve, None
        if reserve is not None:
            reserve.kill()

    def _start(self, n_devices: int) -> ExecutorProcess:
        executor = ExecutorProcess(n_devices=n_devices)
        self._watch(executor)
        return executor
