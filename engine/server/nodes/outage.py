"""Notices if there is no node, or none of its devices serves, for longer than a moment: what health
reports, and whether requests still wait.

missing ─ LATE_S ─▶ outage: health says so, requests wait ─ outage_s ─▶ they end, new ones are refused
          served again ─ STEADY_S, or a token ─▶ over
"""

import asyncio
from collections.abc import Awaitable, Callable

from tokenmux.core.errors import TokenmuxError

LATE_S = 10.0
"""A broken node, or device, is usually replaced within this time; until then nothing is reported."""

STEADY_S = 1.0
"""A pool that serves for this long ends an outage, even without any requests."""


class Outage:
    """Tracks an outage; see the module. Everything runs on the event loop; `sleep` passes the time."""

    def __init__(
        self,
        outage_s: float,
        *,
        on_change: Callable[[], None],
        on_refusal: Callable[[TokenmuxError], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        """Requests wait for at most `outage_s`. `on_change` is called when health changes, `on_refusal` when
        waiting requests must end."""
        self.reason: TokenmuxError | None = None
        """Why nothing serves; None outside of an outage."""
        self.refusal: TokenmuxError | None = None
        """The error that refuses requests; None while they may wait."""
        self._outage_s = outage_s
        self._on_change = on_change
        self._on_refusal = on_refusal
        self._clock = clock
        self._sleep = sleep
        self._began_s = 0.0
        self._next: asyncio.Task[None] | None = None

    def missing(self, reason: TokenmuxError) -> None:
        """Nothing serves, for this `reason`. That is expected to change in a moment."""
        if self.reason is None:
            self._after(LATE_S, lambda: self.begin(reason))
        else:
            self.begin(self.reason)

    def begin(self, reason: TokenmuxError) -> None:
        """Begin an outage: nothing will serve for some time."""
        if self.reason is None:
            self._began_s = self._clock()
        self.reason = reason
        self._on_change()
        self._cancel()
        if self.refusal is None:
            self._after(max(0.0, self._began_s + self._outage_s - self._clock()), self._refuse)
        else:
            self.refusal = reason

    def serves(self) -> None:
        """There is a node again, which has taken what it was told, and one of its devices serves."""
        if self.reason is None:
            self._cancel()
        else:
            self._after(STEADY_S, self.end)

    def end(self) -> None:
        """A request made progress: there is no outage any longer."""
        self._cancel()
        if self.reason is not None:
            self.reason = self.refusal = None
            self._on_change()

    def close(self) -> None:
        self._cancel()

    def _refuse(self) -> None:
        assert self.reason is not None
        self.refusal = self.reason
        self._on_refusal(self.refusal)

    def _after(self, seconds: float, then: Callable[[], None]) -> None:
        """Do this next, instead of anything else that was scheduled."""
        self._cancel()
        self._next = asyncio.create_task(self._wait(seconds, then), name="outage")

    async def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        await self._sleep(seconds)
        self._next = None
        then()

    def _cancel(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
