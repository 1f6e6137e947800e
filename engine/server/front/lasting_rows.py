"""Rows of counters that outlive the node that counted them: a new node begins at zero, its figures are added
to those of its predecessors, and no sum ever falls."""

from collections.abc import Callable, Hashable, Iterable
from operator import add
from typing import Generic, TypeVar

from tokenmux.scheduler.metrics.counter_table import Row
from tokenmux.scheduler.metrics.histogram import Durations

_Name = TypeVar("_Name", bound=Hashable)


class LastingRows(Generic[_Name]):
    """The rows of one table by name: of a model, a tenant or a device."""

    def __init__(self, shown: Callable[[_Name], _Name] = lambda name: name) -> None:
        """`shown` gives the name under which a row is counted: several names may share one, and are added."""
        self._shown = shown
        self._before: dict[_Name, Row] = {}
        self._latest: dict[_Name, Row] = {}

    def take(self, rows: Iterable[tuple[_Name, Row]]) -> None:
        """The present node's latest rows. What is not among them stays as it is."""
        self._latest.update(rows)

    def node_broke(self) -> None:
        """The next row of each name begins at zero."""
        self._before, self._latest = self.totals(), {}

    def copy(self) -> "LastingRows[_Name]":
        """A copy for another thread: rows do not change, and their sums take a while."""
        copied = LastingRows(self._shown)
        copied._before, copied._latest = self._before.copy(), self._latest.copy()
        return copied

    def totals(self) -> dict[_Name, Row]:
        """The sums over all nodes so far."""
        sums = self._before.copy()
        for name, row in self._latest.items():
            shown = self._shown(name)
            before = sums.get(shown)
            sums[shown] = row if before is None else _added(before, row)
        return sums


def _added(one: Row, other: Row) -> Row:
    return tuple(map(_sum, one, other))


def _sum(one: float | Durations, other: float | Durations) -> int | float | Durations:
    if isinstance(one, Durations):
        assert isinstance(other, Durations)
        return Durations(tuple(map(add, one.counts, other.counts)), one.total_s + other.total_s)
    assert not isinstance(other, Durations)
    return one + other
