"""A request as the scheduler sees it: lengths, limits and deadlines, never text.

The content (token ids, sampling parameters, stop tokens) travels beside it in `engine.core.message`, so that the
simulator can run millions of requests that have no content at all.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NewType

from tokenmux.engine.core.facts import ModelId

RequestId = NewType("RequestId", str)


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """Token i of a request (counted from 0) is due at `arrival + ttft_s + i * tpot_s`.

    Source: Aegaeon (SOSP 2025), section on service levels; its defaults are 10 s and 100 ms.
    """

    ttft_s: float = 10.0
    tpot_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Request:
    """What a request asks of the pool.

    `weight` brings it forward among others, by less than a TTFT (higher: sooner). `tenant_weight` is set by the operator: under overload tenants
    get time in proportion to it.
    """

    id: RequestId
    model: ModelId
    n_prompt: int
    max_tokens: int
    arrival_s: float
    service: ServiceLevel = ServiceLevel()
    tenant: str = "default"
    weight: float = 1.0
    tenant_weight: float = 1.0

    def deadline_s(self, index: int) -> float:
        """When token `index` (from 0) is due, in seconds on the clock of `arrival_s`."""
        return self.arrival_s + self.service.ttft_s + index * self.service.tpot_s


class FinishReason(Enum):
    """Why a request ended. Every accepted request ends in exactly one of these."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    FAILED = "failed"
