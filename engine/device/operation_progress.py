"""Progress of a long copy or fetch, reported a few times a second."""

from collections.abc import Callable
from collections.abc import Set as AbstractSet

from tokenmux.core.clock import Clock
from tokenmux.core.event import SUPERSEDED
from tokenmux.core.started import StartedCopy
from tokenmux.device.device_protocol import Post

INTERVAL_S = 0.2
"""A person sees five changes a second as motion."""


def progress_of(started: StartedCopy, clock: Clock, post: Post) -> Callable[[int], None]:
    """A function to call with the bytes of every finished piece. It posts progress if enough time has
    passed since the last report."""
    done = 0
    told_s = clock.now_s()

    def report(n_bytes: int) -> None:
        nonlocal done, told_s
        done += n_bytes
        now_s = clock.now_s()
        if now_s >= told_s + INTERVAL_S:
            told_s = now_s
            post.progress(started.id, min(1.0, done / started.n_bytes))

    return report


class SupersededError(Exception):
    """A fetch stopped early on request."""


def until_superseded(
    report: Callable[[int], None], operation: int, superseded: AbstractSet[int]
) -> Callable[[int], None]:
    """`report`, but raising SupersededError once the operation is in `superseded`."""

    def report_or_end(n_bytes: int) -> None:
        if operation in superseded:
            raise SupersededError(SUPERSEDED)
        report(n_bytes)

    return report_or_end
