"""From errors to gRPC status, in one place for all services.

`tokenmux.server.front.incidents` says what of an error may be shown.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from tokenmux.core.errors import ErrorCode
from tokenmux.server.front.incidents import told_to_client
from tokenmux.server.grpc_api.error_details import DETAILS_KEY, details_of
from tokenmux.server.grpc_api.grpc_types import Context

MAX_MESSAGE_CHARS = 2048
"""Status messages travel in HTTP/2 trailers, which many proxies cap at 8 KiB once percent-encoded."""
MAX_CODED_BYTES = 1024
"""The same for messages that have to be percent-encoded."""

STATUS: Mapping[ErrorCode, grpc.StatusCode] = {
    ErrorCode.ERROR: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.CONTEXT_EXCEEDED: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorCode.UNKNOWN_REQUEST: grpc.StatusCode.NOT_FOUND,
    ErrorCode.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    ErrorCode.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorCode.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    ErrorCode.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.NOT_SERVABLE: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.UNKNOWN_FEATURE: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.UNSUPPORTED_MODEL: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.DOES_NOT_FIT: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.BAD_CHECKPOINT: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.CONFIG_ERROR: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.IN_USE: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.ENDED: grpc.StatusCode.ABORTED,
    ErrorCode.SLOW_READER: grpc.StatusCode.ABORTED,
    ErrorCode.CANCELLED: grpc.StatusCode.CANCELLED,
    ErrorCode.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorCode.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.PROCESS_FAILED: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.INTERNAL: grpc.StatusCode.INTERNAL,
    ErrorCode.ILLEGAL_PLAN: grpc.StatusCode.INTERNAL,
    ErrorCode.INTEGRITY: grpc.StatusCode.INTERNAL,
}
"""The status of every error. RESOURCE_EXHAUSTED and UNAVAILABLE are for `retryable` errors only."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call ends that failed. `details` is a serialized google.rpc.Status."""

    code: grpc.StatusCode
    message: str
    details: bytes

    async def end(self, context: Context) -> None:
        """End the call. Raises grpc.aio.AbortError, which grpc catches."""
        await context.abort(self.code, self.message, ((DETAILS_KEY, self.details),))


def refusal_of(error: Exception) -> Refusal:
    """How a call ends with this error. An internal error is logged, with its id."""
    told = told_to_client(error)
    code, message = STATUS[told.code], _cut(str(told))
    return Refusal(code, message, details_of(told, code, message).SerializeToString())


def _cut(message: str) -> str:
    """As much of a message as trailers hold: they have it twice, and once with three letters for each byte
    that is not printable ASCII."""
    message = message[:MAX_MESSAGE_CHARS]
    if message.isascii() and message.isprintable():
        return message
    return message.encode(errors="replace")[:MAX_CODED_BYTES].decode(errors="ignore")


@asynccontextmanager
async def answering(context: Context) -> AsyncIterator[None]:
    """Run the body of a servicer's method; an exception ends the call with the right status."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except grpc.aio.InternalError as error:
        # A message could not be sent: its client has gone, and gRPC was about to cancel this.
        raise asyncio.CancelledError from error
    except Exception as error:  # noqa: BLE001 - the one place that turns errors into status
        await refusal_of(error).end(context)
