"""Decides if the server accepts requests, and says why if it does not."""

from tokenmux.core.errors import TokenmuxError, Unavailable
from tokenmux.server.front.changes import Changes
from tokenmux.server.front.standstill import Standstill
from tokenmux.server.nodes.outage import Outage

STARTING = "the server is starting: try again in a moment"
DRAINING = "the server is shutting down: try another one, or this one again later"
STOPPED = "the server has stopped: try another one, or this one again later"


class Readiness:
    """starting ─ `opened` ─▶ ready ─ `drain` ─▶ draining ─ `stopped` ─▶ stopped.

    A node may be missing meanwhile.
    """

    def __init__(self, outage: Outage, standstill: Standstill, changes: Changes) -> None:
        self._outage = outage
        self._standstill = standstill
        self._changes = changes
        self._closed: TokenmuxError | None = Unavailable(STARTING)
        self.failed: TokenmuxError | None = None
        """Why the server never became ready, or that it has stopped."""
        self.draining = False
        """True once `drain` was called."""

    @property
    def ready(self) -> bool:
        """True if requests are accepted, a device serves or will in a moment, and something moves if any of
        them wait."""
        return self._closed is None and self._outage.reason is None and not self._standstill.still

    def check(self) -> None:
        """Raise Unavailable, or whatever the reason is, unless requests are accepted."""
        refusal = self._closed or self._outage.refusal
        if refusal is not None:
            raise refusal

    def opened(self) -> None:
        """Requests are accepted from now on."""
        self._closed = None
        self._changes.notify()

    def drain(self) -> None:
        """Refuse new requests; present ones continue."""
        self.draining = True
        self._closed = Unavailable(DRAINING)
        self._changes.notify()

    def fail(self, error: TokenmuxError) -> None:
        """There will be no node."""
        self._closed = self.failed = error
        self._changes.notify()

    def stopped(self) -> None:
        """The server has stopped."""
        self.fail(Unavailable(STOPPED))
