"""The lateness of one request as the Aegaeon artifact counts it."""

from itertools import pairwise


class ArtifactAllowance:
    """The lateness that the Aegaeon artifact counts, for comparison only: it flatters.

    Its README: "the percentage of time where TTFT/TPOT requirements are satisfied over total service time". A
    request has an allowance, at first TTFT; each token adds a TPOT and subtracts its wait. A token that takes
    longer than the allowance is late by the excess, after which the full allowance is restored, so that a
    request that is always late can still score well.
    """

    __slots__ = ("allowance_s", "late_s")

    def __init__(self, allowance_s: float, late_s: float = 0.0) -> None:
        self.allowance_s = allowance_s
        self.late_s = late_s

    def drawn(self, since_s: float, ends_s: tuple[float, ...], tpot_s: float) -> None:
        """Count tokens that came at `ends_s`; the one before, or the request itself, came at `since_s`."""
        self._wait(ends_s[0] - since_s, tpot_s)
        span_s = ends_s[-1] - ends_s[0]
        if span_s <= self.allowance_s:
            self.allowance_s += (len(ends_s) - 1) * tpot_s - span_s
        else:
            for before_s, end_s in pairwise(ends_s):
                self._wait(end_s - before_s, tpot_s)

    def _wait(self, wait_s: float, tpot_s: float) -> None:
        if wait_s > self.allowance_s:
            self.late_s += wait_s - self.allowance_s
        else:
            self.allowance_s -= wait_s
        self.allowance_s += tpot_s
