"""Notices if requests wait and nothing moves, whatever the processes below say of themselves: health then
tells the truth.

What counts is what reaches requests: a token, a copy or fetch that has come further, a step that ended. That
requests arrive, leave, or change places in the queue does not count, nor that a process says that it lives.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.request import FinishReason
from tokenmux.messages.reports import DeviceStatus, Finished, NodeStatus, Report, Tokens
from tokenmux.scheduler.metrics.counter_table import Row
from tokenmux.scheduler.metrics.counters import INSTANCE_TABLE

logger = logging.getLogger(__name__)

LOOK_S = 0.5
"""Seconds between two looks."""

_MOVING = ("n_steps", "compute_busy_s", "copy_in_busy_s", "copy_out_busy_s", "fetch_busy_s")


class Standstill:
    """Tracks whether the pool stands still; see the module. Everything runs on the event loop."""

    def __init__(
        self,
        still_s: float,
        *,
        n_waiting: Callable[[], int],
        on_change: Callable[[], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        """The pool stands still if `n_waiting` requests have waited for `still_s` seconds in which nothing
        moved. `on_change` is called when that begins and ends."""
        self.still = False
        """True if requests wait, and nothing moves."""
        self._still_s = still_s
        self._n_waiting = n_waiting
        self._on_change = on_change
        self._clock = clock
        self._sleep = sleep
        self._moved = False
        self._counts: tuple[Row, ...] = ()
        self._watching: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Watch from now on."""
        self._watching = asyncio.create_task(self._watch(), name="watch for a standstill")

    def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    def hear(self, report: Report) -> None:
        """Note a report of the node if it shows that something moved."""
        match report:
            case Tokens() | Finished(reason=FinishReason.STOP | FinishReason.LENGTH):
                moved = True
            case PhaseChanged(phase=RequestPhase.RUNNING | RequestPhase.PAGED_OUT):
                moved = True
            case PhaseChanged(phase=RequestPhase.LOADING, progress=progress):
                moved = progress > 0
            case NodeStatus(devices=devices):
                before, self._counts = self._counts, tuple(map(_moving_counts, devices))
                moved = self._counts != before
            case _:
                moved = False
        if moved:
            self._moved = True
            self._set(False)

    async def _watch(self) -> None:
        passed_s, looked_s = 0.0, self._clock()
        while True:
            await self._sleep(LOOK_S)
            now_s = self._clock()
            # If this process stood still itself, what the node sent may only be waiting to be read.
            since_s, looked_s = min(now_s - looked_s, 2 * LOOK_S), now_s
            waits = self._n_waiting() > 0
            passed_s = passed_s + since_s if waits and not self._moved else 0.0
            self._moved = False
            self._set(waits and passed_s >= self._still_s)

    def _set(self, still: bool) -> None:
        if still != self.still:
            self.still = still
            if still:
                logger.error(
                    "nothing has moved for %g s, and %d requests wait: health is NOT_SERVING",
                    self._still_s,
                    self._n_waiting(),
                )
            else:
                logger.warning("requests are served again")
            self._on_change()


def _moving_counts(device: DeviceStatus) -> Row:
    """Those of its counters that move only if it does something."""
    counts = INSTANCE_TABLE.named(device.counts)
    return (device.instance, *(counts[name] for name in _MOVING))
