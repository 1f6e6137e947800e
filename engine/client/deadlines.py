"""Deadlines of calls, as gRPC can hold them."""

import math

from tokenmux.client.errors import WrongArgument

LONGEST_S = 1e9
"""Thirty years. With much more, infinity included, gRPC's arithmetic overflows, and a call ends at once."""


def deadline_s(timeout_s: float | None) -> float | None:
    """The timeout of a call in seconds; None: no deadline. Raises WrongArgument for NaN."""
    if timeout_s is None:
        return None
    if math.isnan(timeout_s):
        raise WrongArgument("timeout_s: NaN is not a time: give seconds, or None for no deadline")
    return None if timeout_s > LONGEST_S else timeout_s
