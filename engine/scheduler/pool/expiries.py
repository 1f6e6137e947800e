"""When the clients of live requests stop waiting."""

from heapq import heapify, heappop, heappush
from math import inf

from tokenmux.core.request import Request, RequestId

SPARE_ENTRIES = 64
"""Entries of ended requests that may stay beside those of live ones."""


class Expiries:
    """Requests whose clients stop waiting at a certain time, the first one first."""

    def __init__(self) -> None:
        self._live: dict[RequestId, float] = {}
        self._heap: list[tuple[float, RequestId]] = []

    @property
    def next_s(self) -> float:
        """When the first of them expires, infinity if there is none; earlier if that one has just ended."""
        return self._heap[0][0] if self._heap else inf

    def add(self, request: Request) -> None:
        if request.expires_s < inf:
            self._live[request.id] = request.expires_s
            heappush(self._heap, (request.expires_s, request.id))

    def forget(self, request: RequestId) -> None:
        """The request has ended; no effect if it never expires."""
        if self._live.pop(request, None) is None:
            return
        if len(self._heap) > 2 * len(self._live) + SPARE_ENTRIES:
            self._heap = [(at_s, live) for live, at_s in self._live.items()]
            heapify(self._heap)

    def pop(self, now_s: float) -> list[RequestId]:
        """Take out the live requests that have expired, in the order of their times."""
        expired = []
        while self._heap and self._heap[0][0] <= now_s:
            at_s, request = heappop(self._heap)
            if self._live.get(request) == at_s:
                del self._live[request]
                expired.append(request)
        return expired
