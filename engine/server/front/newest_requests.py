"""Keeps the newest ended requests, with hashes of what their prompts begin with, in bounded memory."""

from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from tokenmux.workload.trace import TraceRequest

MAX_HASHES = 1 << 20
"""Hashes of all requests together: 8 MB. Beyond them the oldest requests lose theirs."""


class _Kept:
    __slots__ = ("hashes", "line")

    def __init__(self, line: TraceRequest) -> None:
        self.line = replace(line, hash_ids=())
        self.hashes = array("Q", line.hash_ids)


class NewestRequests:
    """The newest `window` requests; see the module."""

    def __init__(self, window: int, max_hashes: int = MAX_HASHES) -> None:
        self._window = window
        self._max_hashes = max_hashes
        self._n_hashes = 0
        self._kept: deque[_Kept] = deque()
        self._hashed: deque[_Kept] = deque()
        """Those that have hashes."""

    def __iter__(self) -> Iterator[TraceRequest]:
        """In the order in which they ended."""
        for kept in self._kept:
            yield replace(kept.line, hash_ids=tuple(kept.hashes)) if kept.hashes else kept.line

    def add(self, line: TraceRequest) -> None:
        """Keep a request, instead of the oldest if there are too many."""
        if not self._window:
            return
        kept = _Kept(line)
        self._kept.append(kept)
        if kept.hashes:
            self._hashed.append(kept)
            self._n_hashes += len(kept.hashes)
        if len(self._kept) > self._window and self._kept.popleft().hashes:
            self._drop_oldest_hashes()
        while self._n_hashes > self._max_hashes:
            self._drop_oldest_hashes()

    def _drop_oldest_hashes(self) -> None:
        oldest = self._hashed.popleft()
        self._n_hashes -= len(oldest.hashes)
        oldest.hashes = array("Q")
