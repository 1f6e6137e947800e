"""From errors to gRPC status, in one place for all services.

`tokenmux.server.front.incidents` says what of an error may be shown.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import grpc

from tokenmux.core.errors import ErrorCode
from tokenmux.server.front.incidents import told_to_client
from tokenmux.server.grpc_api.grpc_types import Context

MAX_MESSAGE_CHARS = 2048
"""Status messages travel in HTTP/2 trailers, which many proxies cap at 8 KiB once percent-encoded."""

STATUS: Mapping[ErrorCode, grpc.StatusCode] = {
    ErrorCode.ERROR: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorCode.UNKNOWN_REQUEST: grpc.StatusCode.NOT_FOUND,
    ErrorCode.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    ErrorCode.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorCode.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    ErrorCode.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.NOT_SERVABLE: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.UNSUPPORTED_MODEL: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.DOES_NOT_FIT: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.BAD_CHECKPOINT: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.CONFIG_ERROR: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.IN_USE: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.ENDED: grpc.StatusCode.ABORTED,
    ErrorCode.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorCode.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.PROCESS_FAILED: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.INTERNAL: grpc.StatusCode.INTERNAL,
    ErrorCode.ILLEGAL_PLAN: grpc.StatusCode.INTERNAL,
    ErrorCode.INTEGRITY: grpc.StatusCode.INTERNAL,
}
"""The status of every error. RESOURCE_EXHAUSTED and UNAVAILABLE are for `retryable` errors only."""


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and the message for the client. An internal error is logged, with its id."""
    told = told_to_client(error)
    return STATUS[told.code], str(told)[:MAX_MESSAGE_CHARS]


@asynccontextmanager
async def answering(context: Context) -> AsyncIterator[None]:
    """Run the body of a servicer's method; an exception ends the call with the right status."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # noqa: BLE001 - the one place that turns errors into status
        await context.abort(*status_of(error))
