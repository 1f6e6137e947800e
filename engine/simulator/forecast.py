"""What the next hours will need, from the hours before: a causal forecast that never looks ahead.

The forecast for an hour is the larger of the last hour known and the same hour a day before: traffic follows
the day, and what has just risen rarely falls at once. A pool that is too small loses tokens and one that is
too large only costs, so it is the maximum, not the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

DAY = 24
"""Hours after which traffic repeats."""


def forecast(past: Sequence[float], ahead: int = 1, period: int = DAY) -> float:
    """The value expected `ahead` hours after the last of `past`, which has one value an hour. Raises
    ValueError without a past, or if asked for more than a period."""
    if not past or not 1 <= ahead <= period:
        raise ValueError(f"a forecast needs an hour of the past, and looks 1 to {period} hours ahead")
    a_day_before = len(past) - 1 + ahead - period
    return max(past[-1], past[a_day_before]) if a_day_before >= 0 else past[-1]


@dataclass(frozen=True, slots=True)
class ForecastError:
    """How the forecast for one hour ahead would have done on a recorded past."""

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
