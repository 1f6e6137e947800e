"""The errors that end a stream early on purpose: the words are the same wherever it happens."""

from tokenmux.core.errors import DeadlineExceeded, Ended


def out_of_time(request_id: str, n_delivered: int) -> DeadlineExceeded:
    """Its client's time is over."""
    return DeadlineExceeded(
        f"the time for request {request_id} was over after {n_delivered} tokens: give it more, or ask for "
        "fewer tokens"
    )


def cancelled_by_id(request_id: str) -> Ended:
    """A caller who may do so has cancelled it."""
    return Ended(f"request {request_id} was cancelled by its id")
