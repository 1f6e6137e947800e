"""Lengths of prompts and answers: quantile tables, drawn by inversion, input and output independently.

In the published traces the two are almost uncorrelated (rank correlation 0.06 over the 71,786 requests of the
Aegaeon artifact), so two marginals are enough.
"""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator


@dataclass(frozen=True, slots=True)
class LengthTable:
    """Lengths in tokens at ascending shares of a population: `shares[0]` and below have `tokens[0]`."""

    shares: tuple[float, ...]
    tokens: tuple[float, ...]

    def at(self, share: float) -> int:
        """The length at a share between 0 and 1, interpolated; at least 1."""
        index = bisect_right(self.shares, share)
        if index == 0 or index == len(self.shares):
            return max(1, round(self.tokens[min(index, len(self.tokens) - 1)]))
        low, high = self.shares[index - 1], self.shares[index]
        part = (share - low) / (high - low)
        return max(1, round(self.tokens[index - 1] + part * (self.tokens[index] - self.tokens[index - 1])))

    def draw(self, rng: Generator, n: int) -> list[int]:
        return [self.at(float(share)) for share in rng.random(n)]

    def scaled(self, factor: float) -> "LengthTable":
        return LengthTable(self.shares, tuple(tokens * factor for tokens in self.tokens))

    @property
    def mean(self) -> float:
        shares = np.array(self.shares)
        tokens = np.array(self.tokens)
        edges = shares[0] * tokens[0] + (1 - shares[-1]) * tokens[-1]
        return float(edges + np.sum(np.diff(shares) * (tokens[1:] + tokens[:-1]) / 2))


@dataclass(frozen=True, slots=True)
class Lengths:
    """The lengths of prompts and answers of a population of requests."""

    input: LengthTable
    output: LengthTable


_SHARES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

CHAT = Lengths(
    LengthTable(_SHARES, (1, 2, 8, 15, 51, 200, 405, 585, 791, 994, 1259, 1556, 1760, 2187, 2600)),
    LengthTable(_SHARES, (16, 16, 24, 45, 107, 161, 217, 265, 310, 364, 444, 574, 736, 955, 1309)),
)
"""Quantiles of the ShareGPT lengths in the Aegaeon artifact's workloads (71,786 requests; the 0.1% of prompts
between 2,600 and 26,000 tokens are cut)."""


def fixed(n_input: int, n_output: int) -> Lengths:
    """Lengths that are the same for every request."""
    return Lengths(LengthTable((0.0, 1.0), (n_input, n_input)), LengthTable((0.0, 1.0), (n_output, n_output)))
