"""Which operation has to wait for which on another channel, so that memory always holds what the order of
starting implies.

Operations of one channel run one after another. Those of different channels run at the same time unless they
touch the same bytes and one of them writes. Then the later one waits for the end of the earlier one (read
after write, write after read, write after write), and for nothing else:

    copy-in    [ weights of B ──────────▶]  [page-in r]
    compute      [step of A]      [step of A]        ▲ [step of A with r]     waits for the page-in
    copy-out          [page-out q]─────────────wait──┘                        r comes into blocks that q left

Bytes are named by a space and sorted, disjoint spans `[start, end)` in it. This module knows no device, no
streams and no threads except its own lock: it says what waits for what, and forgets an operation when told
that it ended.
"""

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from threading import Lock
from typing import Generic, TypeVar

from tokenmux.core.plan import Channel

Item = TypeVar("Item")

Spans = tuple[tuple[int, int], ...]
"""Sorted and disjoint `[start, end)`."""

Places = Mapping[Hashable, Spans]
"""Spans by space."""

NOWHERE: Places = {}


@dataclass(frozen=True, slots=True)
class _Entry(Generic[Item]):
    number: int
    item: Item
    reads: Places
    writes: Places
    known: Mapping[Channel, int]
    """For each other channel, the last operation that ends before this one begins."""


class Ordering(Generic[Item]):
    """Operations in flight, in the order in which they were started. Callable from any thread."""

    def __init__(self) -> None:
        self._entered: dict[Channel, dict[int, _Entry[Item]]] = {channel: {} for channel in Channel}
        self._known: dict[Channel, dict[Channel, int]] = {channel: {} for channel in Channel}
        self._next = 0
        self._lock = Lock()

    def enter(
        self, channel: Channel, item: Item, reads: Places, writes: Places
    ) -> tuple[int, tuple[Item, ...]]:
        """Enter a new operation. Returns its number and what it has to wait for: at most one operation of
        each other channel.

        Implied waits are left out: the end of an operation means that all before it on its channel have
        ended, and everything that it waited for itself.
        """
        with self._lock:
            number = self._next
            self._next += 1
            known = self._known[channel]
            met = [
                (entry, other)
                for other, entries in self._entered.items()
                if other is not channel and (entry := _last_met(entries.values(), reads, writes)) is not None
            ]
            after = []
            for entry, other in sorted(met, key=lambda pair: -pair[0].number):
                if entry.number > known.get(other, -1):
                    after.append(entry.item)
                    for third, last in (*entry.known.items(), (other, entry.number)):
                        if third is not channel:
                            known[third] = max(known.get(third, -1), last)
            self._entered[channel][number] = _Entry(number, item, reads, writes, dict(known))
            return number, tuple(after)

    def leave(self, channel: Channel, number: int) -> None:
        """The operation has ended: nothing has to wait for it any longer."""
        with self._lock:
            del self._entered[channel][number]

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._entered.values())


def merged(spans: Iterable[tuple[int, int]]) -> Spans:
    """Sort spans and merge those that overlap."""
    result: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return tuple(result)


def _last_met(entries: Iterable[_Entry[Item]], reads: Places, writes: Places) -> _Entry[Item] | None:
    for entry in reversed(list(entries)):
        if _meet(entry.writes, reads) or _meet(entry.writes, writes) or _meet(entry.reads, writes):
            return entry
    return None


def _meet(some: Places, others: Places) -> bool:
    return any(_overlap(spans, others.get(space, ())) for space, spans in some.items())


def _overlap(few: Spans, many: Spans) -> bool:
    if len(few) > len(many):
        few, many = many, few
    for start, end in few:
        index = bisect_right(many, start, key=itemgetter(1))
        if index < len(many) and many[index][0] < end:
            return True
    return False
