"""The instances of a pool by index, and which of them take requests.

open ──▶ takes what fits            held ──▶ only what fits nowhere else: its device is being started
closed ─▶ takes nothing: it drains  removed ▶ an empty slot: its index is never used again
"""

from collections.abc import Callable, Sequence

from tokenmux.core.event import Event, ModelRemoved, ModelWanted, ResizeAsked, Resized
from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.core.request import Request
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.capacity import most_tokens

_CHANGE_ROOM = frozenset({ModelRemoved, ModelWanted, ResizeAsked, Resized})
"""Events after which something else may fit."""


class Members:
    """Instances that come, go, and take requests or do not."""

    def __init__(self, instances: Sequence[Instance], n_tokens: Callable[[Request], int]) -> None:
        """`n_tokens` gives the number of tokens of a request, prompt and output, that need room."""
        self.instances = list(instances)
        self._n_tokens = n_tokens
        self.held: set[int] = set()
        self.closed: set[int] = set()
        self.removed: set[int] = set()
        self.open: tuple[int, ...] = ()
        """Indices of the instances that are neither held, closed nor removed."""
        self.sharers: list[list[int]] = []
        """For each instance, the others with the same host cache: they may wait for what it fetches."""
        self._limits: list[dict[ModelId, int] | None] = [None] * len(self.instances)
        """For each instance, the longest request of each model asked about so far. Instances that are alike
        share a table: a pool of hundreds is asked for every model. None: not asked since it changed."""
        self._limits_alike: dict[tuple[object, ...], dict[ModelId, int]] = {}
        self.changed()

    @property
    def present(self) -> list[int]:
        """All but the removed ones."""
        return [index for index in range(len(self.instances)) if index not in self.removed]

    def add(self, instance: Instance) -> int:
        self.instances.append(instance)
        self._limits.append(None)
        self.changed()
        return len(self.instances) - 1

    def replace(self, index: int, instance: Instance) -> None:
        self.instances[index] = instance
        self._forget(index)
        self.changed()

    def changed(self) -> None:
        """Call this after `held`, `closed` or `removed` have changed."""
        shut = self.held | self.closed | self.removed
        self.open = tuple(index for index in range(len(self.instances)) if index not in shut)
        by_cache: dict[int, list[int]] = {}
        for index in self.present:
            by_cache.setdefault(id(self.instances[index].ledger.cache), []).append(index)
        self.sharers = [
            [other for other in by_cache.get(id(instance.ledger.cache), ()) if other != index]
            for index, instance in enumerate(self.instances)
        ]

    def takes(self, index: int, request: Request, facts: ModelFacts) -> bool:
        """True if the request may be placed on the instance now."""
        if index in self.closed or index in self.removed or not self.fits(index, request, facts):
            return False
        return index not in self.held or not any(self.fits(other, request, facts) for other in self.open)

    def fits(self, index: int, request: Request, facts: ModelFacts) -> bool:
        """True if the instance could ever serve the request: the model, and all its tokens, beside what is
        pinned there."""
        return self._n_tokens(request) <= self.most_tokens(index, facts)

    def most_tokens(self, index: int, facts: ModelFacts) -> int:
        """The longest request of the model that the instance could serve, in tokens."""
        limits = self._limits[index] or self._limits_of(index)
        most = limits.get(facts.id)
        if most is None:
            most = limits[facts.id] = self._ask(index, facts)
        return most

    def note(self, index: int, event: Event) -> None:
        """A pin, or another size of the arena, changes what fits."""
        if type(event) in _CHANGE_ROOM:
            self._forget(index)

    def _limits_of(self, index: int) -> dict[ModelId, int]:
        kind = (self._arena_bytes(index), self.instances[index].device.slab_bytes, *self._pinned(index))
        limits = self._limits[index] = self._limits_alike.setdefault(kind, {})
        return limits

    def _ask(self, index: int, facts: ModelFacts) -> int:
        slab_bytes = self.instances[index].device.slab_bytes
        return most_tokens(self._arena_bytes(index), slab_bytes, facts, self._pinned(index))

    def _arena_bytes(self, index: int) -> int:
        """The size of the arena, now or once it has been resized, whichever is smaller."""
        instance = self.instances[index]
        return min(instance.device.arena_bytes, instance.resize_bytes or instance.device.arena_bytes)

    def _pinned(self, index: int) -> list[ModelFacts]:
        instance = self.instances[index]
        return [instance.models[m].facts for m in instance.asked_models if instance.models[m].pinned]

    def _forget(self, index: int) -> None:
        """What fits there has changed. A model may also have been registered again under its old name: then
        no table counts."""
        self._limits_alike.clear()
        self._limits = [None] * len(self.instances)
