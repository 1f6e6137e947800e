"""From errors to gRPC status, in one place for all services.

An error of our own tree was raised on purpose: its message names the remedy and is sent unchanged. Anything
else is our fault: it is logged with an id, and the client gets only the id, so that no path, token or stack
leaks.
"""

import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import grpc

from tokenmux.core.errors import ErrorCode, TokenmuxError
from tokenmux.server.grpc_api.grpc_types import Context

logger = logging.getLogger(__name__)

MAX_MESSAGE_CHARS = 2048
"""Status messages travel in HTTP/2 trailers, which many proxies cap at 8 KiB once percent-encoded."""

STATUS: Mapping[ErrorCode, grpc.StatusCode] = {
    ErrorCode.ERROR: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
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
    ErrorCode.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.WORKER_FAILED: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.INTERNAL: grpc.StatusCode.INTERNAL,
    ErrorCode.ILLEGAL_PLAN: grpc.StatusCode.INTERNAL,
    ErrorCode.INTEGRITY: grpc.StatusCode.INTERNAL,
}
"""The status of every error. RESOURCE_EXHAUSTED and UNAVAILABLE are for `retryable` errors only."""


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and the message for the client. An internal error is logged here, with its id."""
    if isinstance(error, TokenmuxError):
        status = STATUS[error.code]
        if status is not grpc.StatusCode.INTERNAL:
            return status, str(error)[:MAX_MESSAGE_CHARS]
    incident = secrets.token_hex(4)
    logger.error("internal error %s", incident, exc_info=error)
    return (
        grpc.StatusCode.INTERNAL,
        (
            f"internal error {incident}: please report it with the lines of the server's log that "
            "contain this id"
        ),
    )


@asynccontextmanager
async def answering(context: Context) -> AsyncIterator[None]:
    """Run the body of a servicer's method; an exception ends the call with the right status."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # noqa: BLE001 - the one place that turns errors into status
        await context.abort(*status_of(error))
