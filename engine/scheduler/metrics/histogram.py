"""A histogram of durations with constant memory: counts between fixed bounds, five per factor of ten.

All histograms have the same bounds, so they can be added: models to a pool, instances to a fleet; and the
difference of two moments covers the time between. A percentile is off by at most one interval, a factor of
1.6.
"""

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import NamedTuple

BOUNDS_S = tuple(
    round(mantissa * 10.0**power, 6) for power in range(-4, 3) for mantissa in (1, 1.6, 2.5, 4, 6.3)
)
"""Upper bounds in seconds, 0.1 ms to 630 s, after the R5 series of preferred numbers (ISO 3). Longer
durations are counted beyond the last."""


def interval(seconds: float) -> int:
    """Index of a duration's interval: the first whose upper bound it does not exceed."""
    return bisect_left(BOUNDS_S, seconds)


class Durations(NamedTuple):
    """A histogram at a moment: `counts[i]` durations lie in interval `i`."""

    counts: tuple[int, ...]
    total_s: float


def _zeros() -> list[int]:
    return [0] * (len(BOUNDS_S) + 1)


@dataclass(slots=True)
class Histogram:
    """`counts[i]` durations lie in interval `i`; the last is for those beyond all bounds.

    >>> found = Histogram()
    >>> for seconds in (0.011, 0.012, 0.3):
    ...     found.add(seconds)
    >>> found.percentile(0.5), found.percentile(0.99)
    (0.016, 0.4)
    """

    counts: list[int] = field(default_factory=_zeros)
    total_s: float = 0.0

    @property
    def n(self) -> int:
        return sum(self.counts)

    def add(self, seconds: float, n: int = 1) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += n
        self.total_s += n * seconds

    def durations(self) -> Durations:
        """What it holds at this moment."""
        return Durations(tuple(self.counts), self.total_s)

    def percentile(self, share: float) -> float:
        """The bound that `share` of the durations does not exceed; 0 if there are none."""
        left = share * self.n
        for bound_s, count in zip((*BOUNDS_S, BOUNDS_S[-1]), self.counts, strict=True):
            left -= count
            if count and left <= 0:
                return bound_s
        return 0.0

    def merge(self, other: "Histogram") -> None:
        """Add another histogram's durations to this one."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total_s += other.total_s
