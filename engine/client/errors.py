"""The client's errors: a call that the server refused or that did not get through, and arguments that
cannot be sent."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

_RETRYABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})

_TOO_LARGE = "message larger than max"
"""gRPC's own words for a message that will always be too large."""


class CallFailed(Exception):
    """A call failed. `code` is the gRPC status, `message` the server's message, which names the remedy."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{message} ({code.name})")
        self.code = code
        self.message = message

    @property
    def retryable(self) -> bool:
        """True if the same call may succeed later without anyone changing anything."""
        too_large = self.code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in self.message
        return self.code in _RETRYABLE and not too_large


class WrongArgument(ValueError):
    """An argument that cannot or must not be sent. The message names it and the remedy."""


@contextmanager
def translated() -> Iterator[None]:
    """Raise CallFailed in place of grpc's own error."""
    try:
        yield
    except grpc.RpcError as error:
        raise CallFailed(error.code(), error.details() or "no reason was given") from error
