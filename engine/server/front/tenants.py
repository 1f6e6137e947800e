"""What the operator grants: weights of tenants and of models, and places in a full queue."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tokenmux.core.errors import Overloaded
from tokenmux.server.front.turnover import Turnover

SPARE_PLACES = 1 / 8
"""Extra places, as a share of the queue's size: for tenants that hold less than their share when others have
filled the queue."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights by name; 1 for a name that is not listed."""

    tenants: Mapping[str, float] = field(default_factory=dict)
    """Under overload, tenants get time and places in proportion."""
    models: Mapping[str, float] = field(default_factory=dict)
    """Multiplies the weight of the model's requests."""

    def of_tenant(self, name: str) -> float:
        return self.tenants.get(name, 1.0)

    def of_model(self, name: str) -> float:
        return self.models.get(name, 1.0)


class QueuePlaces:
    """The places of a queue of `limit` requests: held by tenants, or by prompts that are being tokenized."""

    def __init__(self, limit: int, weights: Weights, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._turnover = Turnover(clock)
        self._weights = weights
        self._held: Counter[str] = Counter()
        """Live requests by tenant."""
        self.n_admitting = 0
        """Requests whose prompts are being tokenized."""

    @contextmanager
    def admitting(self, tenant: str, n: int = 1) -> Iterator[None]:
        """Hold `n` places while a prompt of this tenant is tokenized. Raises Overloaded."""
        if is_full(tenant, self._held, self._limit, self._weights, self.n_admitting, n):
            said = f"the queue is full ({self._limit} requests)"
            if n > 1:
                said = f"the queue of {self._limit} requests has no room for {n} more, one for each choice"
            retry_s = self._turnover.wait_s(n)
            raise Overloaded(f"{said}: try again in a few seconds", retry_s=retry_s, limit=self._limit)
        self.n_admitting += n
        try:
            yield
        finally:
            self.n_admitting -= n

    def take(self, tenant: str) -> None:
        """A request of this tenant is live."""
        self._held[tenant] += 1

    def give_back(self, tenant: str) -> None:
        """A live request of this tenant has ended."""
        self._turnover.ended()
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]


def is_full(
    tenant: str, held: Counter[str], limit: int, weights: Weights, n_admitting: int = 0, n: int = 1
) -> bool:
    """True if a queue of `limit` places has not `n` more for `tenant`. `held` counts places by tenant;
    `n_admitting` more are held by requests that are being admitted."""
    last = held.total() + n_admitting + n - 1
    """Number of places before the last of them."""
    if last < limit or last >= limit + int(SPARE_PLACES * limit):
        return last >= limit
    together = sum(weights.of_tenant(name) for name in {*held, tenant})
    return held[tenant] + n - 1 >= limit * weights.of_tenant(tenant) / together
