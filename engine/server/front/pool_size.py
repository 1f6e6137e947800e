"""What fits the pool, whose size operators change while it serves.

While a resize is going on, what is let in has to fit both sizes: the new one, since it will be served there,
and the one of before, which remains if the new one cannot be had.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from tokenmux.core.facts import ModelFacts


class Capacity(Protocol):
    """What could ever fit on the device, however full it is now."""

    @property
    def arena_bytes(self) -> int: ...

    def resized(self, arena_bytes: int) -> "Capacity":
        """The same with an arena of another size."""
        ...

    def check_model(self, model: ModelFacts, pinned: Iterable[ModelFacts]) -> None:
        """Raises DoesNotFit when the model can never be served beside the pinned ones."""
        ...

    def check_request(self, model: ModelFacts, n_tokens: int, pinned: Iterable[ModelFacts]) -> None:
        """Raises DoesNotFit when one request of so many tokens, prompt and output, can never be."""
        ...


class PoolSize:
    """Answers like the `Capacity` of the size that is in force."""

    def __init__(self, capacity: Capacity) -> None:
        self._present = capacity
        self._coming: Capacity | None = None

    @property
    def arena_bytes(self) -> int:
        """The size that a worker has, or starts with."""
        return self._present.arena_bytes

    @contextmanager
    def becoming(self, arena_bytes: int) -> Iterator[None]:
        """A resize is going on. On leaving without an error, it is done."""
        self._coming = coming = self._present.resized(arena_bytes)
        try:
            yield
            self._present = coming
        finally:
            self._coming = None

    def check_model(self, model: ModelFacts, pinned: Iterable[ModelFacts]) -> None:
        """Raises DoesNotFit when the model can never be served beside the pinned ones."""
        pinned = list(pinned)
        for capacity in self._in_force():
            capacity.check_model(model, pinned)

    def check_request(self, model: ModelFacts, n_tokens: int, pinned: Iterable[ModelFacts]) -> None:
        """Raises DoesNotFit when one request of so many tokens, prompt and output, can never be."""
        pinned = list(pinned)
        for capacity in self._in_force():
            capacity.check_request(model, n_tokens, pinned)

    def _in_force(self) -> list[Capacity]:
        return [self._present] if self._coming is None else [self._present, self._coming]
