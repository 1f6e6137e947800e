"""How soon places in the queue become free, by when the last requests ended."""

from collections import deque
from collections.abc import Callable

REMEMBERED = 64
MIN_WAIT_S, MAX_WAIT_S = 0.1, 60.0


class Turnover:
    """Estimates when to try again. It has to be told of every request that ends."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ended_s: deque[float] = deque(maxlen=REMEMBERED)

    def ended(self) -> None:
        """A place became free."""
        self._ended_s.append(self._clock())

    def wait_s(self, n: int) -> float | None:
        """In how many seconds `n` places will probably have become free: the mean time between the ends of
        the last requests, or the time since the last one if that is longer. None if too few have ended."""
        if len(self._ended_s) < 2:
            return None
        first_s, last_s = self._ended_s[0], self._ended_s[-1]
        each_s = max((last_s - first_s) / (len(self._ended_s) - 1), self._clock() - last_s)
        return min(MAX_WAIT_S, max(MIN_WAIT_S, n * each_s))
