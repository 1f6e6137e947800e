"""How long work reports its progress."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)` now and then during work that takes long, from any thread."""


def no_progress(what: str, done: int, total: int) -> None:
    """For work that nobody watches."""
