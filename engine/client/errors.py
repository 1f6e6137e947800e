"""The client's errors: a call that the server refused or that did not get through, and arguments that
cannot be sent."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

_RETRYABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})

_TOO_LARGE = "message larger than max"
"""gRPC's own words for a message that will always be too large."""


_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What a program may want to know of a failed call. `reason` stays from version to version, such as
    "CONTEXT_EXCEEDED", and is empty if the server gave none.

    `metadata` has, for some reasons, `limit`, `given` or `model`. `retry_after_s` is when to try again, and
    `fields` are the paths of wrong fields, such as "sampling.top_k".
    """

    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None
    fields: tuple[str, ...] = ()


class CallFailed(Exception):
    """A call failed. `code` is the gRPC status, `message` the server's message, which names the remedy, and
    `details` are for programs."""

    def __init__(self, code: grpc.StatusCode, message: str, details: ErrorDetails | None = None) -> None:
        super().__init__(f"{message} ({code.name})")
        self.code = code
        self.message = message
        self.details = details or ErrorDetails()

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
        message = error.details() or "no reason was given"
        raise CallFailed(error.code(), message, _details(error.trailing_metadata())) from error


def _details(trailers: object) -> ErrorDetails:
    """What the trailers of a failed call say; what cannot be read is left out."""
    reason, metadata, retry_after_s, fields = "", {}, None, []
    for key, value in trailers or ():  # type: ignore[attr-defined]
        if key != _DETAILS_KEY:
            continue
        try:
            status = Status.FromString(value)
            for packed in status.details:
                info, retry, wrong = ErrorInfo(), RetryInfo(), BadRequest()
                if packed.Unpack(info):
                    reason, metadata = info.reason, dict(info.metadata)
                elif packed.Unpack(retry):
                    retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
                elif packed.Unpack(wrong):
                    fields += [violation.field for violation in wrong.field_violations]
        except DecodeError:
            continue
    return ErrorDetails(reason, metadata, retry_after_s, tuple(fields))
