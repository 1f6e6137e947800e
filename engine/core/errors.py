"""The error tree: every error that a user of tokenmux can meet, with the remedy in its message.

    TokenmuxError             to be fixed outside, such as a full disk  (FAILED_PRECONDITION)
    ├── InvalidRequest        the caller must change the request        (gRPC INVALID_ARGUMENT)
    ├── NotFound              no such model, request or file            (NOT_FOUND)
    ├── AlreadyExists         a model of that name is registered        (ALREADY_EXISTS)
    ├── Overloaded            transient: try again later                (RESOURCE_EXHAUSTED)
    ├── NotServable           can never work on this pool as it is      (FAILED_PRECONDITION)
    │   ├── UnsupportedModel  the architecture cannot be run
    │   └── DoesNotFit        larger than the memory it would need
    ├── BadCheckpoint         files are missing, cut off or damaged     (FAILED_PRECONDITION)
    ├── ConfigError           a configuration file or flag is wrong     (exit status 2)
    ├── InUse                 live requests stand in the way            (FAILED_PRECONDITION)
    ├── Ended                 the server ended an accepted request      (ABORTED)
    ├── Unavailable           starting, stopping or broken              (UNAVAILABLE)
    │   └── WorkerFailed      a device or its process broke
    └── InternalError         a bug in tokenmux: please report          (INTERNAL)
        ├── IllegalPlan       a policy asked for what the ledger forbids
        └── IntegrityError    an allocator's books do not balance

Only the classes live here; the server maps them to gRPC status codes. An error is `retryable` exactly if its
code tells clients to try again (RESOURCE_EXHAUSTED, UNAVAILABLE).
"""

from typing import ClassVar


class TokenmuxError(Exception):
    """Base of all errors raised on purpose. `str(error)` can be shown to a user."""

    retryable: ClassVar[bool] = False
    """True if the same call may succeed later without anyone changing anything."""


class InvalidRequest(TokenmuxError):
    """The request itself is wrong; the same request will always be refused."""


class NotFound(TokenmuxError):
    """A model, request or file of that name does not exist."""


class AlreadyExists(TokenmuxError):
    """The name is already taken."""


class Overloaded(TokenmuxError):
    """A queue or budget is full; the same request may succeed later."""

    retryable = True


class NotServable(TokenmuxError):
    """The request is well formed, but this pool can never serve it as it is configured."""


class UnsupportedModel(NotServable):
    """The model's architecture or file format cannot be run; the message says why."""


class DoesNotFit(NotServable):
    """Something is larger than the memory that it needs; the message gives both sizes."""


class BadCheckpoint(TokenmuxError):
    """A checkpoint or weight image is incomplete or damaged; the message names the file."""


class ConfigError(TokenmuxError):
    """A configuration value is wrong; the message names the place and the allowed values."""


class InUse(TokenmuxError):
    """The operation would lose live requests; the message says how to force it."""


class Ended(TokenmuxError):
    """The server ended an accepted request before it was complete; the message says why."""


class Unavailable(TokenmuxError):
    """The server cannot answer now. Try another server, or this one later."""

    retryable = True


class WorkerFailed(Unavailable):
    """A device, or the process that drives it, broke. Its requests are served again elsewhere."""


class InternalError(TokenmuxError):
    """A bug in tokenmux."""


class IllegalPlan(InternalError):
    """A policy asked for an operation that the ledger does not allow in the present state."""


class IntegrityError(InternalError):
    """An allocator found its own books out of balance."""


def error_of(kind: str, otherwise: type[TokenmuxError]) -> type[TokenmuxError]:
    """The error class called `kind`, as it travels between processes; `otherwise` if there is none."""
    found = globals().get(kind)
    return found if isinstance(found, type) and issubclass(found, TokenmuxError) else otherwise
