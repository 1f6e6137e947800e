"""The error tree: every error that a user of tokenmux can meet, with the remedy in its message.

    TokenmuxError             such as a disk that is full: mend it      (FAILED_PRECONDITION)
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
    ├── Ended                 an accepted request was ended by us       (ABORTED)
    ├── Unavailable           starting, stopping or broken              (UNAVAILABLE)
    │   └── WorkerFailed      a device or its process broke
    └── InternalError         a broken invariant of ours: please report (INTERNAL)
        ├── IllegalPlan       a policy asked for what the ledger forbids
        └── IntegrityError    an allocator's books do not balance

Only the classes live here; the mapping to gRPC status codes is the server's. Those that are `retryable` have
codes that say "try again" (RESOURCE_EXHAUSTED, UNAVAILABLE), and no others do.
"""

from typing import ClassVar


class TokenmuxError(Exception):
    """Base of all errors raised on purpose. `str(error)` is fit to be shown to a user."""

    retryable: ClassVar[bool] = False
    """Whether the same call may succeed later although nobody changes anything."""


class InvalidRequest(TokenmuxError):
    """The request itself is wrong; the same request will always be refused."""


class NotFound(TokenmuxError):
    """A model, request or file of that name does not exist."""


class AlreadyExists(TokenmuxError):
    """The name is taken."""


class Overloaded(TokenmuxError):
    """A queue or budget is full at this moment; the same request may succeed later."""

    retryable = True


class NotServable(TokenmuxError):
    """The request is well formed, but this pool can never serve it as it is configured."""


class UnsupportedModel(NotServable):
    """The model's architecture or file format cannot be run; the message says why."""


class DoesNotFit(NotServable):
    """Something is larger than the memory it would have to fit in; the message gives both sizes."""


class BadCheckpoint(TokenmuxError):
    """A checkpoint or weight image is incomplete or damaged; the message names the file."""


class ConfigError(TokenmuxError):
    """A configuration value is wrong; the message names the place and what is allowed."""


class InUse(TokenmuxError):
    """Live requests would be lost by what was asked; the message says how to insist."""


class Ended(TokenmuxError):
    """An accepted request was ended from our side before it was complete; the message says why."""


class Unavailable(TokenmuxError):
    """The server does not answer requests at this moment; another one, or this one later, may."""

    retryable = True


class WorkerFailed(Unavailable):
    """A device, or the process that drives it, broke; its requests are handed back."""


class InternalError(TokenmuxError):
    """A bug in tokenmux."""


class IllegalPlan(InternalError):
    """A policy asked for an operation that the ledger does not allow in the present state."""


class IntegrityError(InternalError):
    """An allocator found its own books out of balance."""


def error_of(kind: str, otherwise: type[TokenmuxError]) -> type[TokenmuxError]:
    """The class of that name, as it travels between processes; `otherwise` for a name that is none of
    ours."""
    found = globals().get(kind)
    return found if isinstance(found, type) and issubclass(found, TokenmuxError) else otherwise
