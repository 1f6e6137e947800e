"""Ends the process if it was told to stop and does not, whatever hangs in it.

A separate thread waits for a byte on a pipe, which a signal handler may write at any moment, and then for the
end. It needs neither the event loop, nor logging, nor any lock that something hung may hold.
"""

import os
import select
import sys
import time
from collections.abc import Callable
from threading import Thread

STOP_S = 10.0
"""How long everything that is not a live request may take to end, after the drain or a second signal."""


class LastResort:
    """Kills a process that does not stop. `draining` and `hurrying` start the time; only the end of the
    process stops it."""

    def __init__(
        self, drain_s: float, end: Callable[[int], object] = os._exit, stop_s: float = STOP_S
    ) -> None:
        self._limits_s = {b"d": drain_s + stop_s, b"h": stop_s}
        self._end = end
        self._read, self._write = os.pipe()
        Thread(target=self._wait, name="tokenmux-last-resort", daemon=True).start()

    def draining(self) -> None:
        """The first signal came: live requests have `drain_s`."""
        os.write(self._write, b"d")

    def hurrying(self) -> None:
        """The second signal came: live requests have no more time."""
        os.write(self._write, b"h")

    def _wait(self) -> None:
        end_s: float | None = None
        while True:
            left_s = None if end_s is None else max(0.0, end_s - time.monotonic())
            ready, _, _ = select.select([self._read], [], [], left_s)
            if not ready:
                os.write(
                    sys.__stderr__.fileno() if sys.__stderr__ else 2,
                    b"the server does not end by itself: it is ended\n",
                )
                self._end(1)
                return
            limit_s = time.monotonic() + self._limits_s[os.read(self._read, 1)]
            end_s = limit_s if end_s is None else min(end_s, limit_s)
