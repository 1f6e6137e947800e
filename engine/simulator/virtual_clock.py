"""A clock on which time passes only on request."""

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf


class VirtualClock:
    """Calls happen at their times; those of equal time in the order of `call_at`."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    def now_s(self) -> float:
        return self._now_s

    @property
    def next_s(self) -> float:
        """When the next call is due; infinity if there is none."""
        return self._calls[0][0] if self._calls else inf

    def call_at(self, at_s: float, call: Callable[[], None]) -> None:
        heappush(self._calls, (at_s, self._sequence, call))
        self._sequence += 1

    def pass_to(self, at_s: float) -> None:
        """Let time pass to `at_s`. Nothing may be due before that."""
        self._now_s = at_s

    def run_next(self) -> None:
        """Let time pass to the next call, and make it."""
        self._now_s, _, call = heappop(self._calls)
        call()

    def run(self, until_s: float = inf) -> None:
        """Let time pass until nothing is left to happen, or until `until_s`."""
        while self._calls and self._calls[0][0] <= until_s:
            self.run_next()
