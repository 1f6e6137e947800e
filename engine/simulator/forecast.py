"""What the next hours will need, from the hours before: a causal forecast that never looks ahead.

The forecast for an hour is the larger of the last hour known and the same hour a day before: traffic follows
the day, and what has just risen rarely falls at once. A pool that is too small loses tokens and one that is
too large only costs, so it is the maximum, not the mean.

Traffic in bursts needs more than that, and how much more the forecast's own errors tell: `margin` is what has
to be added to it. Added, not multiplied: a burst is as large in a quiet hour as in a busy one, so a factor
that covers the former would have to be huge for the latter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

DAY = 24
"""Hours after which traffic repeats."""
COVERED = 0.999
"""Share of what all recorded hours needed that a forecast with its margin would have had. It is nearly all:
a pool that is short loses more tokens than it lacks devices."""


def forecast(past: Sequence[float], ahead: int = 1, period: int = DAY) -> float:
    """The value expected `ahead` hours after the last of `past`, which has one value an hour. Raises
    ValueError without a past, or if asked for more than a period."""
    if not past or not 1 <= ahead <= period:
        raise ValueError(f"a forecast needs an hour of the past, and looks 1 to {period} hours ahead")
    a_day_before = len(past) - 1 + ahead - period
    return max(past[-1], past[a_day_before]) if a_day_before >= 0 else past[-1]


def margin(past: Sequence[float], covered: float = COVERED, ahead: int = 1, period: int = DAY) -> float:
    """The least amount that, added to every forecast of the recorded past, would have covered this share of
    all that those hours needed; 0 if none can be compared. Raises ValueError for a share that is not between
    0 and 1."""
    if not 0 <= covered <= 1:
        raise ValueError(f"a share is between 0 and 1, not {covered}")
    hours = range(ahead, len(past))
    errors = sorted((past[h] - forecast(past[: h - ahead + 1], ahead, period) for h in hours), reverse=True)
    allowed = (1 - covered) * sum(past[ahead:])
    # With a margin m the hours lack the sum of all error - m > 0, which is the largest of all sums of the
    # n largest errors - n m: none of these may be above what is allowed.
    sums = enumerate(accumulate(errors), 1)
    return max(0.0, max(((total - allowed) / n for n, total in sums), default=0.0))


@dataclass(frozen=True, slots=True)
class ForecastError:
    """How the forecast for one hour ahead would have done on a recorded past, without a margin."""

    n_hours: int
    """Hours that could be forecast: all but the first."""
    n_short: int
    """Hours that turned out to need more."""
    mean_share: float
    """Mean of the absolute error, relative to the mean of what was needed."""


def error_on(past: Sequence[float], period: int = DAY) -> ForecastError:
    """Forecast every recorded hour from those before it, and compare."""
    hours = range(1, len(past))
    errors = [forecast(past[:hour], 1, period) - past[hour] for hour in hours]
    needed = sum(past[1:])
    share = sum(map(abs, errors)) / needed if needed else 0.0
    return ForecastError(len(errors), sum(error < 0 for error in errors), share)
