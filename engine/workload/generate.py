"""Seeded generators of traffic. Every function takes a numpy Generator: the same seed makes the same trace.

Arrival processes give times within `[0, duration_s)`; `traffic` joins them with lengths and models into a
trace.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gamma, pi, sin

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tokenmux.core.request import DEFAULT_TENANT
from tokenmux.workload.lengths import CHAT, Lengths
from tokenmux.workload.trace import Trace, TraceRequest

Times = NDArray[np.float64]
Process = Callable[[Generator, float, float], Times]
"""(rng, requests per second, duration in seconds) to ascending arrival times."""


def poisson(rng: Generator, rate_rps: float, duration_s: float) -> Times:
    n = int(rng.poisson(rate_rps * duration_s))
    return np.sort(rng.random(n) * duration_s)


@dataclass(frozen=True, slots=True)
class Renewal:
    """Independent gaps of a Gamma or Weibull distribution; a shape below 1 makes bursts (coefficient of
    variation above 1)."""

    family: str
    shape: float

    def __call__(self, rng: Generator, rate_rps: float, duration_s: float) -> Times:
        if rate_rps <= 0:
            return np.empty(0)
        mean_s = 1 / rate_rps
        times: list[Times] = []
        at_s = -float(rng.random()) * mean_s
        while at_s < duration_s:
            gaps = self.gaps(rng, mean_s, max(16, int(rate_rps * duration_s)))
            block = at_s + np.cumsum(gaps)
            times.append(block)
            at_s = float(block[-1])
        joined = np.concatenate(times)
        return joined[(joined >= 0) & (joined < duration_s)]

    def gaps(self, rng: Generator, mean_s: float, n: int) -> Times:
        if self.family == "gamma":
            return rng.gamma(self.shape, mean_s / self.shape, n)
        return mean_s / gamma(1 + 1 / self.shape) * rng.weibull(self.shape, n)


def gamma_with_cv(cv: float) -> Renewal:
    """Gamma gaps with this coefficient of variation (1 is Poisson)."""
    return Renewal("gamma", 1 / cv**2)


@dataclass(frozen=True, slots=True)
class Diurnal:
    """Poisson whose rate swings as a sine: `1 + swing * sin(2 pi (t / period + phase))` times the mean
    rate."""

    period_s: float = 86400.0
    swing: float = 0.8
    phase: float = 0.0

    def __call__(self, rng: Generator, rate_rps: float, duration_s: float) -> Times:
        peak = 1 + abs(self.swing)
        candidates = poisson(rng, rate_rps * peak, duration_s)
        accept = rng.random(len(candidates)) * peak
        wanted = [1 + self.swing * sin(2 * pi * (t / self.period_s + self.phase)) for t in candidates]
        return candidates[accept < np.array(wanted)] if len(candidates) else candidates


def zipf_rates(n_models: int, total_rps: float, exponent: float = 1.0) -> list[float]:
    """Rates of models by rank: the k-th most popular gets a share proportional to 1 / k ** exponent.

    >>> [round(rate, 2) for rate in zipf_rates(3, total_rps=11.0)]
    [6.0, 3.0, 2.0]
    """
    shares = [1 / rank**exponent for rank in range(1, n_models + 1)]
    return [total_rps * share / sum(shares) for share in shares]


def traffic(
    rng: Generator,
    rates: Mapping[str, float],
    duration_s: float,
    lengths: Lengths | Mapping[str, Lengths] = CHAT,
    process: Process = poisson,
    tenant: str = DEFAULT_TENANT,
) -> Trace:
    """A trace of all models together, in order of arrival; `rates` are requests per second by model."""
    trace: Trace = []
    for model, rate_rps in rates.items():
        own = lengths if isinstance(lengths, Lengths) else lengths[model]
        times = process(rng, rate_rps, duration_s)
        n_in = own.input.draw(rng, len(times))
        n_out = own.output.draw(rng, len(times))
        trace += [
            TraceRequest(float(at_s), model, a, b, tenant)
            for at_s, a, b in zip(times, n_in, n_out, strict=True)
        ]
    return sorted(trace, key=lambda line: line.arrival_s)
