"""The error tree: every error that a user of tokenmux can meet, with the remedy in its message.

    TokenmuxError             to be fixed outside, such as a full disk  (FAILED_PRECONDITION)
    ├── InvalidRequest        the caller must change the request        (gRPC INVALID_ARGUMENT)
    │   └── ContextExceeded   prompt and output are too long for the model
    ├── NotFound              no such model or file                     (NOT_FOUND)
    │   └── UnknownRequest    no such live request of this caller
    ├── AlreadyExists         a model of that name is registered        (ALREADY_EXISTS)
    ├── Unauthenticated       the call carries no valid API key         (UNAUTHENTICATED)
    ├── Forbidden             the API key does not open this            (PERMISSION_DENIED)
    ├── Overloaded            transient: try again later                (RESOURCE_EXHAUSTED)
    ├── NotServable           can never work on this pool as it is      (FAILED_PRECONDITION)
    │   ├── UnknownFeature    the request relies on what this version does not know
    │   ├── UnsupportedModel  the architecture cannot be run
    │   └── DoesNotFit        larger than the memory it would need
    ├── BadCheckpoint         files are missing, cut off or damaged     (FAILED_PRECONDITION)
    ├── ConfigError           a configuration file or flag is wrong     (exit status 2)
    ├── InUse                 live requests stand in the way            (FAILED_PRECONDITION)
    ├── Ended                 the server ended an accepted request      (ABORTED)
    │   └── SlowReader        its client did not read
    ├── WorkCancelled         the caller, or an operator, ended it      (CANCELLED)
    ├── DeadlineExceeded      the client's time for the call is over    (DEADLINE_EXCEEDED)
    ├── Unavailable           starting, stopping or broken              (UNAVAILABLE)
    │   └── ProcessFailed      a device or its process broke
    └── InternalError         a bug in tokenmux: please report          (INTERNAL)
        ├── IllegalPlan       a policy asked for what the ledger forbids
        └── IntegrityError    an allocator's books do not balance

Between processes an error travels as its `ErrorCode` and its message; the server maps codes to gRPC status.
Programs read the name of the code, which stays, and what `details` say; people read the message.
An error is `retryable` exactly if its status tells clients to try again (RESOURCE_EXHAUSTED, UNAVAILABLE).
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar


class ErrorCode(StrEnum):
    """Names a class of the error tree in messages between processes."""

    ERROR = "error"
    INVALID_REQUEST = "invalid_request"
    CONTEXT_EXCEEDED = "context_exceeded"
    NOT_FOUND = "not_found"
    UNKNOWN_REQUEST = "unknown_request"
    ALREADY_EXISTS = "already_exists"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    OVERLOADED = "overloaded"
    NOT_SERVABLE = "not_servable"
    UNKNOWN_FEATURE = "unknown_feature"
    UNSUPPORTED_MODEL = "unsupported_model"
    DOES_NOT_FIT = "does_not_fit"
    BAD_CHECKPOINT = "bad_checkpoint"
    CONFIG_ERROR = "config_error"
    IN_USE = "in_use"
    ENDED = "ended"
    SLOW_READER = "slow_reader"
    CANCELLED = "cancelled"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    UNAVAILABLE = "unavailable"
    PROCESS_FAILED = "process_failed"
    INTERNAL = "internal"
    ILLEGAL_PLAN = "illegal_plan"
    INTEGRITY = "integrity"


class TokenmuxError(Exception):
    """Base of all errors raised on purpose. `str(error)` can be shown to a user."""

    code: ClassVar[ErrorCode] = ErrorCode.ERROR
    """The code of exactly this class."""
    retryable: ClassVar[bool] = False
    """True if the same call may succeed later without anyone changing anything."""
    usual_retry_s: ClassVar[float | None] = None
    """When to try again, in seconds from now, if nothing better is known. None unless `retryable`."""

    def __init__(self, message: str = "", *, retry_s: float | None = None, **details: object) -> None:
        """`retry_s` is when to try again, in seconds from now, if that was measured. `details` are what a
        program may want to know, such as `limit`, `given`, `model`."""
        super().__init__(message)
        self.retry_s = self.usual_retry_s if retry_s is None else retry_s
        self.details: Mapping[str, str] = {name: str(value) for name, value in details.items()}


class InvalidRequest(TokenmuxError):
    """The request itself is wrong; the same request will always be refused."""

    code = ErrorCode.INVALID_REQUEST

    def __init__(self, message: str = "", *, field: str | None = None, **details: object) -> None:
        """`field` is what must be changed, if it is one thing: a field of the front's `Ask`, or a place in
        the dialect's own request."""
        super().__init__(message, retry_s=None, **details)
        self.field = field

    @property
    def named(self) -> str:
        """The field, or else the first word: a rule that gives no field begins its message with the name."""
        return self.field or str(self).partition(" ")[0]


class ContextExceeded(InvalidRequest):
    """Prompt and output do not fit the model's context. `limit` and `given` are in tokens."""

    code = ErrorCode.CONTEXT_EXCEEDED


class NotFound(TokenmuxError):
    """A model or file of that name does not exist."""

    code = ErrorCode.NOT_FOUND


class UnknownRequest(NotFound):
    """The caller has no live request with that id."""

    code = ErrorCode.UNKNOWN_REQUEST


class AlreadyExists(TokenmuxError):
    """The name is already taken."""

    code = ErrorCode.ALREADY_EXISTS


class Unauthenticated(TokenmuxError):
    """The call carries no API key that this server knows."""

    code = ErrorCode.UNAUTHENTICATED


class Forbidden(TokenmuxError):
    """The API key of the call does not give access to what it asks for."""

    code = ErrorCode.FORBIDDEN


class Overloaded(TokenmuxError):
    """A queue or budget is full; the same request may succeed later."""

    code = ErrorCode.OVERLOADED
    retryable = True
    usual_retry_s = 2.0


class NotServable(TokenmuxError):
    """The request is well formed, but this pool can never serve it as it is configured."""

    code = ErrorCode.NOT_SERVABLE


class UnknownFeature(NotServable):
    """The request relies on features of the API that this server lacks; the message names them."""

    code = ErrorCode.UNKNOWN_FEATURE


class UnsupportedModel(NotServable):
    """The model's architecture or file format cannot be run; the message says why."""

    code = ErrorCode.UNSUPPORTED_MODEL


class DoesNotFit(NotServable):
    """Something is larger than the memory that it needs; the message gives both sizes."""

    code = ErrorCode.DOES_NOT_FIT


class BadCheckpoint(TokenmuxError):
    """A checkpoint or weight image is incomplete or damaged; the message names the file."""

    code = ErrorCode.BAD_CHECKPOINT


class ConfigError(TokenmuxError):
    """A configuration value is wrong; the message names the place and the allowed values."""

    code = ErrorCode.CONFIG_ERROR


class InUse(TokenmuxError):
    """The operation would lose live requests; the message says how to force it."""

    code = ErrorCode.IN_USE


class Ended(TokenmuxError):
    """The server ended an accepted request before it was complete; the message says why."""

    code = ErrorCode.ENDED


class SlowReader(Ended):
    """The client of an accepted request left too much unread for too long."""

    code = ErrorCode.SLOW_READER


class WorkCancelled(TokenmuxError):
    """What was under way was cancelled, and nothing is left of it."""

    code = ErrorCode.CANCELLED


class DeadlineExceeded(TokenmuxError):
    """The time that the client gave its request is over, or cannot suffice; the message says which."""

    code = ErrorCode.DEADLINE_EXCEEDED


class Unavailable(TokenmuxError):
    """The server cannot answer now. Try another server, or this one later."""

    code = ErrorCode.UNAVAILABLE
    retryable = True
    usual_retry_s = 5.0


class ProcessFailed(Unavailable):
    """A device, or the process that drives it, broke. Its requests are served again elsewhere."""

    code = ErrorCode.PROCESS_FAILED


class InternalError(TokenmuxError):
    """A bug in tokenmux."""

    code = ErrorCode.INTERNAL


class IllegalPlan(InternalError):
    """A policy asked for an operation that the ledger does not allow in the present state."""

    code = ErrorCode.ILLEGAL_PLAN


class IntegrityError(InternalError):
    """An allocator found its own books out of balance."""

    code = ErrorCode.INTEGRITY


_CLASSES: dict[ErrorCode, type[TokenmuxError]] = {
    kind.code: kind
    for kind in (
        TokenmuxError,
        InvalidRequest,
        ContextExceeded,
        NotFound,
        UnknownRequest,
        AlreadyExists,
        Unauthenticated,
        Forbidden,
        Overloaded,
        NotServable,
        UnknownFeature,
        UnsupportedModel,
        DoesNotFit,
        BadCheckpoint,
        ConfigError,
        InUse,
        Ended,
        SlowReader,
        WorkCancelled,
        DeadlineExceeded,
        Unavailable,
        ProcessFailed,
        InternalError,
        IllegalPlan,
        IntegrityError,
    )
}


def error_of(code: ErrorCode, message: str) -> TokenmuxError:
    """The error that `code` names, to be raised."""
    return _CLASSES[code](message)


def code_named(said: object, otherwise: ErrorCode) -> ErrorCode:
    """The code that another process said; `otherwise` for anything that is not one."""
    try:
        return ErrorCode(said)  # type: ignore[arg-type]
    except ValueError:
        return otherwise
