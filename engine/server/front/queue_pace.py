"""How fast waiting requests have begun to run lately: evidence for refusing at once what would expire in the
queue.

Only what was measured counts: a time in which some requests waited all along, and enough of them began. A
request is refused if those that are due before it would take twice the time that its client gives it.
"""

from collections import deque
from collections.abc import Callable

from tokenmux.core.errors import DeadlineExceeded
from tokenmux.core.request import Request, RequestId

PACE_WINDOW_S = 60.0
"""How far back the measurement goes."""
LEAST_STARTS = 16
"""Fewer say nothing about the pace."""
MOST_STARTS = 1000
"""More are not remembered: the last ones say enough."""
WAIT_MARGIN = 2.0
"""The pace varies: only a wait that is longer than this many times the given time is certain enough."""


class QueuePace:
    """Watches which requests wait for their first step, and when they get it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: dict[RequestId, Request] = {}
        self._starts_s: deque[float] = deque(maxlen=MOST_STARTS)

    def arrived(self, request: Request) -> None:
        """Note that it waits from now on."""
        self._waiting[request.id] = request

    def ran(self, request: RequestId) -> None:
        """Note that it runs, which counts the first time."""
        if self._waiting.pop(request, None) is None:
            return
        self._starts_s.append(self._clock())
        self._look()

    def left(self, request: RequestId) -> None:
        """Forget a request that has ended, or whose client has."""
        if self._waiting.pop(request, None) is not None:
            self._look()

    def check(self, request: Request, timeout_s: float | None) -> None:
        """Raise DeadlineExceeded for a request that would certainly expire in the queue."""
        if timeout_s is None:
            return
        due_s = request.deadline_s(request.n_resumed)
        n_ahead = sum(other.deadline_s(other.n_resumed) <= due_s for other in self._waiting.values())
        wait_s = self._wait_s(n_ahead)
        if wait_s is not None and wait_s > WAIT_MARGIN * timeout_s:
            raise DeadlineExceeded(
                f"{n_ahead} requests are ahead of this one, which takes about {wait_s:.3g} s at the present "
                f"pace, and it has {timeout_s:.3g} s: try again later, or give it more time"
            )

    def _wait_s(self, n_ahead: int) -> float | None:
        """How long `n_ahead` requests take to begin; None without evidence."""
        now_s = self._clock()
        while self._starts_s and self._starts_s[0] < now_s - PACE_WINDOW_S:
            self._starts_s.popleft()
        if len(self._starts_s) < LEAST_STARTS:
            return None
        return n_ahead * (now_s - self._starts_s[0]) / (len(self._starts_s) - 1)

    def _look(self) -> None:
        """Forget the pace if no one waits: it was not the queue that set it."""
        if not self._waiting:
            self._starts_s.clear()
