"""What a client is told of an error, the same in every dialect.

An error of our own tree was raised on purpose: its message names the remedy and is sent unchanged. Anything
else is our fault: it is logged with an id, and the client gets only the id, so that no path, token or stack
leaks.
"""

import logging
import secrets

from tokenmux.core.errors import InternalError, TokenmuxError

logger = logging.getLogger(__name__)


def told_to_client(error: Exception) -> TokenmuxError:
    """The error for the client. An internal one is logged here, with its id."""
    if isinstance(error, TokenmuxError) and not isinstance(error, InternalError):
        return error
    incident = secrets.token_hex(4)
    logger.error("internal error %s", incident, exc_info=error)
    return InternalError(
        f"internal error {incident}: please report it with the lines of the server's log that contain this id"
    )
