"""What executors report, turned into events of their instances and reports to the front."""

from collections.abc import Callable
from typing import assert_never

from tokenmux.core.clock import Clock
from tokenmux.core.event import Resized
from tokenmux.core.phases import DeviceState, PhaseChanged, RequestPhase
from tokenmux.messages.completions import (
    ArenaReallocated,
    CopyCompleted,
    CopyProgressed,
    Drew,
    ExecutorAlive,
    ExecutorBroken,
    ExecutorReady,
    ExecutorReport,
    GrammarReady,
    StepCompleted,
)
from tokenmux.messages.reports import Report
from tokenmux.node.accusations import Accusations
from tokenmux.node.grammars import Grammars
from tokenmux.node.node_device import NodeDevice
from tokenmux.node.node_requests import NodeRequests
from tokenmux.node.operator_commands import Operators
from tokenmux.scheduler.pool.pool import Pool


class ExecutorReports:
    """Takes what executors report; see the module. `kill` ends the executor of a device, with the reason;
    `silent_s` is how long one may be silent that is at work."""

    def __init__(
        self,
        pool: Pool,
        requests: NodeRequests,
        accusations: Accusations,
        grammars: Grammars,
        operators: Operators,
        kill: Callable[[NodeDevice, str], None],
        silent_s: float,
        clock: Clock,
        say: Callable[[Report], None],
    ) -> None:
        self._pool = pool
        self._requests = requests
        self._accusations = accusations
        self._grammars = grammars
        self._operators = operators
        self._kill = kill
        self._silent_s = silent_s
        self._clock = clock
        self._say = say

    def hear(self, device: NodeDevice, completion: ExecutorReport) -> None:
        """Take one report. Raises StrayReport if it cannot be."""
        match completion:
            case Drew():
                self._requests.drew(device.drew(completion), completion.at_s)
            case StepCompleted():
                self._accusations.cannot_go_on(device.faults(completion))
                pooled = device.pooled(completion)
                told, drawn, done = device.step_completed(completion)
                self._requests.pooled(pooled)
                self._requests.told(told)
                self._requests.drew(drawn, done.at_s)
                self._pool.apply(device.index, done)
            case CopyCompleted():
                self._pool.apply(device.index, device.copy_completed(completion))
            case CopyProgressed(_, share):
                load = device.load_progressed(completion)
                model = device.instance.models.get(load.model.id) if load else None
                for request in model.waiting.values() if model else ():
                    self._say(PhaseChanged(request.id, RequestPhase.LOADING, progress=share))
            case GrammarReady():
                self._grammars.ready(device, completion)
            case ArenaReallocated(arena_bytes, error, code):
                device.resized(arena_bytes)
                self._pool.apply(device.index, Resized(self._clock.now_s(), arena_bytes))
                self._operators.resized(device, error, code)
            case ExecutorReady():
                device.ready, device.silent_s = True, self._silent_s
                self._grammars.started(device)
                if device.state in (DeviceState.STARTING, DeviceState.OUT):
                    device.state, device.fault = DeviceState.SERVING, ""
                self._pool.release(device.index)
                self._operators.started(device)
            case ExecutorAlive(silent_s):
                if device.ready or silent_s:
                    device.silent_s = max(self._silent_s, silent_s)
            case ExecutorBroken(detail):
                self._kill(device, detail)
            case _:
                assert_never(completion)
