"""The wish that a piece of work ends early, which may be said in one thread and be heard in another."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tokenmux.core.errors import WorkCancelled


class Cancellation:
    """Not asked for at first, then asked for, for good. What hears of it may hear twice."""

    def __init__(self) -> None:
        self.asked = False
        self._told: list[Callable[[], object]] = []

    def ask(self) -> None:
        """Ask for the end. From any thread."""
        self.asked = True
        for tell in tuple(self._told):
            tell()

    @contextmanager
    def tells(self, tell: Callable[[], object]) -> Iterator[None]:
        """While the context lasts, call `tell` in the thread that asks, or at once if it was asked for."""
        self._told.append(tell)
        try:
            if self.asked:
                tell()
            yield
        finally:
            self._told.remove(tell)

    def check(self) -> None:
        """Raise WorkCancelled if it was asked for."""
        if self.asked:
            raise WorkCancelled("it was cancelled")
