"""How busy an instance is with what its live models ask of it.

A load is in shares of a second per second, of compute or of copy-in, whichever is larger. KV counts only as
far as it finds no room beside the two largest models. Models that never fit into the arena together add a
load (`CLASH`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenmux.core.facts import ModelId
from tokenmux.scheduler.policy.instance_policy import InstanceView
from tokenmux.scheduler.policy.loading import HEADROOM
from tokenmux.scheduler.policy.pool.demand import Demand

CLASH = 1.0
"""Load added for each model that one never fits into the arena with; of an instance, the mean over its
models. They take turns, and nothing steps while one comes in. A model that is too large to share gets an
instance of its own while it is live, as long as the others can spare one; if they cannot, such models share
instances with few others, so that they do not all keep the many small ones from stepping. Counted once for an
instance, however many clash, sixteen overloads kept 2.7 points less (mean; -4 to +18 for one)."""


@dataclass(slots=True)
class InstanceLoad:
    """What all live models ask of one instance."""

    arena_bytes: int
    lag: float = 0.0
    """How late its latest model is, in TTFTs of the pool: work that has piled up."""
    demands: dict[ModelId, Demand] = field(default_factory=dict)
    _now: float | None = None
    """Cached `larger()` of what is asked now."""
    _heaviest: int | None = None
    """Cached size of the largest weights here."""

    def add(self, model: ModelId, demand: Demand) -> None:
        self.demands[model] = demand
        self._now = self._heaviest = None

    def remove(self, model: ModelId) -> None:
        self._now = self._heaviest = None
        self.demands.pop(model, None)

    @property
    def now(self) -> float:
        """How busy it is, plus `CLASH` for each model that one never fits together with (the mean)."""
        if self._now is None:
            self._now = self.larger()
        return self._now

    def larger(self, without: ModelId | None = None, extra: Demand | None = None) -> float:
        """What `now` would be without the model `without`, or with the demand `extra` added."""
        demands = [demand for model, demand in self.demands.items() if model != without]
        if extra:
            demands.append(extra)
        sizes = sorted(demand.weight_bytes for demand in demands)
        n_pairs = _n_clashing_pairs(sizes, self._sharable_bytes)
        return self._busy(demands, sizes) + (CLASH * 2 * n_pairs / len(sizes) if n_pairs else 0.0)

    @property
    def busy(self) -> float:
        """The larger share of compute and copies, plus how late it is already."""
        demands = list(self.demands.values())
        return self._busy(demands, sorted(demand.weight_bytes for demand in demands))

    def _busy(self, demands: Sequence[Demand], sizes: Sequence[int]) -> float:
        if not demands:
            return 0.0
        kv_bytes = sum(demand.kv_bytes for demand in demands)
        room = self.arena_bytes - sum(sizes[-2:])
        homeless = max(0.0, 1 - room / kv_bytes) if kv_bytes else 0.0
        copy = sum(demand.copy + homeless * demand.kv_copy for demand in demands)
        return self.lag + max(sum(demand.compute for demand in demands), copy)

    def n_clashes(self, n_bytes: int, without: ModelId | None = None) -> int:
        """With how many models here weights of `n_bytes` could never share the arena."""
        room = self._sharable_bytes - n_bytes
        if self._heaviest is None:
            self._heaviest = max((demand.weight_bytes for demand in self.demands.values()), default=0)
        if self._heaviest <= room:
            return 0
        return sum(demand.weight_bytes > room for model, demand in self.demands.items() if model != without)

    @property
    def _sharable_bytes(self) -> float:
        return (1 - HEADROOM) * self.arena_bytes


def lag_of(instance: InstanceView) -> float:
    """How late the instance's latest model is, in TTFTs of the pool."""
    latest = min((m for m in instance.live_models.values() if m.n_live), key=lambda m: m.due_s, default=None)
    if latest is None or latest.due_s >= instance.now_s:
        return 0.0
    return (instance.now_s - latest.due_s) / instance.service.ttft_s


def _n_clashing_pairs(sizes: Sequence[int], room: float) -> int:
    """How many pairs of these weights, the smallest first, do not fit into `room` together."""
    n_pairs, low = 0, 0
    for high in range(len(sizes) - 1, 0, -1):
        while low < high and sizes[low] + sizes[high] <= room:
            low += 1
        n_pairs += max(0, high - low)
        if low >= high:
            break
    return n_pairs
