"""What a copy or fetch reports besides its success: progress, a few times a second, and why it ended
early."""

from collections.abc import Callable
from threading import Event

from tokenmux.core.clock import Clock
from tokenmux.core.errors import TokenmuxError
from tokenmux.device.device_protocol import Post
from tokenmux.messages.completions import CopyCompleted, CopyProgressed
from tokenmux.messages.launches import OperationId

INTERVAL_S = 0.2
"""A person sees five changes a second as motion."""


def progress_of(operation: OperationId, n_bytes: int, clock: Clock, post: Post) -> Callable[[int], None]:
    """A function to call with the bytes of every finished piece of `n_bytes`. It posts progress if enough
    time has passed since the last report."""
    done = 0
    told_s = clock.now_s()

    def report(n_piece_bytes: int) -> None:
        nonlocal done, told_s
        done += n_piece_bytes
        now_s = clock.now_s()
        if now_s >= told_s + INTERVAL_S:
            told_s = now_s
            post.tell(CopyProgressed(operation, min(1.0, done / n_bytes) if n_bytes else 1.0))

    return report


class SupersededError(Exception):
    """A copy or fetch stopped early on request."""


def until_stopped(report: Callable[[int], None], stop: Event) -> Callable[[int], None]:
    """`report`, but raising SupersededError once `stop` is set."""

    def report_or_end(n_bytes: int) -> None:
        if stop.is_set():
            raise SupersededError
        report(n_bytes)

    return report_or_end


def failed_copy(
    operation: OperationId, at_s: float, problem: TokenmuxError | SupersededError
) -> CopyCompleted:
    """The completion of a copy or fetch that did not succeed."""
    if isinstance(problem, SupersededError):
        return CopyCompleted(operation, at_s, superseded=True)
    return CopyCompleted(operation, at_s, str(problem), problem.code)
