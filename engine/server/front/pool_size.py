"""What fits the pool, whose size operators can change while it serves.

During a resize, what is accepted has to fit both sizes: the new one, with which it will be served, and the
old one, which stays if the resize fails.
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
        """Raise DoesNotFit if the model can never be served beside the pinned ones."""
        ...

    def check_request(self, model: ModelFacts, n_tokens: int, pinned: Iterable[ModelFacts]) -> None:
        """Raise DoesNotFit if a request of `n_tokens` tokens, prompt and output, can never be served."""
        ...


class PoolSize:
    """Answers like the `Capacity` of the present size."""

    def __init__(self, capacity: Capacity) -> None:
        self._present = capacity
        self._coming: Capacity | None = None

    @property
    def arena_bytes(self) -> int:
        """The size that a worker has, or starts with."""
        return self._present.arena_bytes

    @contextmanager
    def becoming(self, arena_bytes: int) -> Iterator[None]:
        """A resize is under way. When the block ends without an error, it is done."""
        self._coming = coming = self._present.resized(arena_bytes)
        try:
            yield
            self._present = coming
        finally:
            self._coming = None

    def check_model(self, model: ModelFacts, pinned: Iterable[ModelFacts]) -> None:
        """Raise DoesNotFit if the model can never be served beside the pinned ones."""
        pinned = list(pinned)
        for capacity in self._in_force():
            capacity.check_model(model, pinned)

    def check_request(self, model: ModelFacts, n_tokens: int, pinned: Iterable[ModelFacts]) -> None:
        """Raise DoesNotFit if a request of `n_tokens` tokens, prompt and output, can never be served."""
        pinned = list(pinned)
        for capacity in self._in_force():
            capacity.check_request(model, n_tokens, pinned)

    def _in_force(self) -> list[Capacity]:
        return [self._present] if self._coming is None else [self._present, self._coming]
