"""A request as the scheduler sees it: lengths, limits and deadlines, never text.

Its content (token ids, sampling parameters, stop tokens) travels beside it in `tokenmux.messages`, so that
the simulator can run millions of requests without content.
"""

from dataclasses import dataclass
from enum import Enum
from math import inf, isnan
from typing import NewType

from tokenmux.core.facts import ModelId
from tokenmux.core.prefix import Prefix

RequestId = NewType("RequestId", str)

DEFAULT_TENANT = "default"
"""The tenant of requests that name none and carry no key."""

SECONDS = (1e-6, 1e9)
"""Bounds of a TTFT or TPOT in seconds. Values outside are clipped, so that dividing by one, or counting the
steps in one, cannot overflow."""

WEIGHTS = (1e-6, 1e6)
"""Bounds of weights, for the same reason. Admission (`tokenmux.server.front.request_rules`) is stricter, and
refuses instead of clipping."""

LEVEL_RATIO = 10.0
"""A level counts as at most this many times stricter or laxer than the pool's own (`ServiceLevel.beside`)."""


def _keep_within(value: object, names: tuple[str, ...], bounds: tuple[float, float]) -> None:
    """Clip attributes of a frozen value to `bounds`. Nearly all values are within and stay untouched."""
    low, high = bounds
    for name in names:
        number: float = getattr(value, name)
        if not low <= number <= high:
            if isnan(number):
                raise ValueError(f"{name} is not a number")
            object.__setattr__(value, name, _within(number, low, high))


def _within(number: float, low: float, high: float) -> float:
    return min(max(number, low), high)


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """Token i of a request (counted from 0) is due at `arrival + ttft_s + i * tpot_s`.

    Source: Aegaeon (SOSP 2025), section on service levels; its defaults are 10 s and 100 ms.
    """

    ttft_s: float = 10.0
    tpot_s: float = 0.1

    def __post_init__(self) -> None:
        _keep_within(self, ("ttft_s", "tpot_s"), SECONDS)

    def beside(self, pool: "ServiceLevel") -> "ServiceLevel":
        """This level for decisions that affect others, such as the load of an instance: clipped to within
        `LEVEL_RATIO` of the pool's level.

        A request is judged by its own level, which must not decide how the pool treats everyone else.
        """
        ttft_s = _within(self.ttft_s, pool.ttft_s / LEVEL_RATIO, pool.ttft_s * LEVEL_RATIO)
        tpot_s = _within(self.tpot_s, pool.tpot_s / LEVEL_RATIO, pool.tpot_s * LEVEL_RATIO)
        return self if (ttft_s, tpot_s) == (self.ttft_s, self.tpot_s) else ServiceLevel(ttft_s, tpot_s)


DEFAULT_LEVEL = ServiceLevel()


@dataclass(frozen=True, slots=True)
class Request:
    """What a request asks of the pool.

    A higher `weight` moves it ahead of others, by less than one TTFT. `tenant_weight` is set by the operator:
    under overload, tenants get time in proportion to it.

    The first `n_resumed` tokens of its output were drawn elsewhere, before it was sent again: they are no
    longer due. At `expires_s` its client stops waiting, and it ends. `prefix` has the keys of its prompt's
    beginning, if it may share KV with others.
    """

    id: RequestId
    model: ModelId
    n_prompt: int
    max_tokens: int
    arrival_s: float
    service: ServiceLevel = DEFAULT_LEVEL
    tenant: str = DEFAULT_TENANT
    weight: float = 1.0
    tenant_weight: float = 1.0
    n_resumed: int = 0
    expires_s: float = inf
    prefix: Prefix | None = None

    def __post_init__(self) -> None:
        _keep_within(self, ("weight", "tenant_weight"), WEIGHTS)

    def deadline_s(self, index: int) -> float:
        """When token `index` (from 0) is due, in seconds on the clock of `arrival_s`.

        >>> request = Request(RequestId("r"), ModelId("m"), n_prompt=8, max_tokens=4, arrival_s=100.0)
        >>> request.deadline_s(0), request.deadline_s(20)
        (110.0, 112.0)
        """
        return self.arrival_s + self.service.ttft_s + (index - self.n_resumed) * self.service.tpot_s


class FinishReason(Enum):
    """Why a request ended. Every accepted request ends for exactly one of these reasons."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"
