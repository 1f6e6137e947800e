"""What the operator grants: weights of tenants and of models, and whose request finds a place in a full
queue."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

SPARE_PLACES = 1 / 8
"""Beyond the queue's size, as a share of it: for tenants that hold less than their share, when others have
filled the queue."""


@dataclass(frozen=True, slots=True)
class Weights:
    """1 where nothing is said."""

    tenants: Mapping[str, float] = field(default_factory=dict)
    """Under overload, tenants get time and places in proportion."""
    models: Mapping[str, float] = field(default_factory=dict)
    """Multiplies the weight of the model's requests."""

    def of_tenant(self, name: str) -> float:
        return self.tenants.get(name, 1.0)

    def of_model(self, name: str) -> float:
        return self.models.get(name, 1.0)


def is_full(tenant: str, held: Counter[str], limit: int, weights: Weights, n_admitting: int = 0) -> bool:
    """Whether a queue of `limit` places is full for this tenant. `held`: places by tenant; `n_admitting`
    are nobody's yet."""
    n = held.total() + n_admitting
    if n < limit or n >= limit + int(SPARE_PLACES * limit):
        return n >= limit
    together = sum(weights.of_tenant(name) for name in {*held, tenant})
    return held[tenant] >= limit * weights.of_tenant(tenant) / together
