"""From errors to gRPC status, in one place for all services.

An error of our own tree was raised on purpose: its message names the remedy and is sent unchanged. Anything
else is our fault: it is logged with an id, and the client gets only the id, so that no path, token or stack
leaks.
"""

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from tokenmux.core.errors import (
    AlreadyExists,
    BadCheckpoint,
    ConfigError,
    Ended,
    InternalError,
    InUse,
    InvalidRequest,
    NotFound,
    NotServable,
    Overloaded,
    TokenmuxError,
    Unavailable,
)
from tokenmux.server.grpc_api.grpc_types import Context

logger = logging.getLogger(__name__)

MAX_MESSAGE_CHARS = 2048
"""Status messages travel in HTTP/2 trailers, which many proxies cap at 8 KiB once percent-encoded."""

CODES: dict[type[TokenmuxError], grpc.StatusCode] = {
    TokenmuxError: grpc.StatusCode.FAILED_PRECONDITION,
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotServable: grpc.StatusCode.FAILED_PRECONDITION,
    BadCheckpoint: grpc.StatusCode.FAILED_PRECONDITION,
    ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
    InUse: grpc.StatusCode.FAILED_PRECONDITION,
    Ended: grpc.StatusCode.ABORTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    InternalError: grpc.StatusCode.INTERNAL,
}
"""A class that is not listed has the code of its nearest listed base. RESOURCE_EXHAUSTED and UNAVAILABLE
are for `retryable` errors only."""


def code_of(error: TokenmuxError) -> grpc.StatusCode:
    """The status code of an error."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The code and the message for the client. An error of ours is logged here."""
    if isinstance(error, TokenmuxError) and not isinstance(error, InternalError):
        return code_of(error), str(error)[:MAX_MESSAGE_CHARS]
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
