"""Progress reports of long work."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)` from time to time during long work, from any thread."""


def no_progress(what: str, done: int, total: int) -> None:
    """Ignore progress."""
