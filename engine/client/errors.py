"""What the client raises: a call that the server refused or that did not get through, and arguments that
cannot be sent."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

_RETRYABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})

_TOO_LARGE = "message larger than max"
"""gRPC's own words for a message that no repetition will make smaller."""


class CallFailed(Exception):
    """`code` is the gRPC status, `message` the server's words, which name the remedy."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{message} ({code.name})")
        self.code = code
        self.message = message

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later although nobody changes anything."""
        too_large = self.code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in self.message
        return self.code in _RETRYABLE and not too_large


class WrongArgument(ValueError):
    """An argument that cannot be sent, or must not be; the message names it and the remedy."""


@contextmanager
def translated() -> Iterator[None]:
    """Raises CallFailed in the place of grpc's own error."""
    try:
        yield
    except grpc.RpcError as error:
        raise CallFailed(error.code(), error.details() or "no reason was given") from error
