"""From errors to HTTP status and OpenAI's error bodies, in one place for all paths.

`tokenmux.server.front.incidents` says what of an error may be shown.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from pydantic import BaseModel

from tokenmux.core.errors import ErrorCode, InvalidRequest
from tokenmux.server.front.incidents import told_to_client

MAX_ERROR_CHARS = 2048

WRONG_REQUEST, OVER_LIMIT, SERVER_FAULT = "invalid_request_error", "rate_limit_error", "server_error"


class HttpRefusal(Exception):
    """A request that HTTP itself refuses: an unknown path, a wrong content type, a body that is too large."""

    def __init__(self, status: HTTPStatus, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


class ErrorDetail(BaseModel):
    """What went wrong, and what to do."""

    message: str
    type: str
    param: str | None
    """The field of the request to change, if it is one."""
    code: str


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """How one error looks in HTTP."""

    status: HTTPStatus
    type: str
    code: str
    headers: Mapping[str, str] = field(default_factory=dict)


def _refused(code: str, status: HTTPStatus, headers: Mapping[str, str] | None = None) -> ErrorForm:
    return ErrorForm(status, WRONG_REQUEST, code, headers or {})


_INTERNAL = ErrorForm(HTTPStatus.INTERNAL_SERVER_ERROR, SERVER_FAULT, "internal_error")
_UNSERVABLE = HTTPStatus.UNPROCESSABLE_ENTITY

ERROR_FORMS: Mapping[ErrorCode, ErrorForm] = {
    ErrorCode.ERROR: _refused("failed_precondition", _UNSERVABLE),
    ErrorCode.INVALID_REQUEST: _refused("invalid_value", HTTPStatus.BAD_REQUEST),
    ErrorCode.CONTEXT_EXCEEDED: _refused("context_length_exceeded", HTTPStatus.BAD_REQUEST),
    ErrorCode.NOT_FOUND: _refused("model_not_found", HTTPStatus.NOT_FOUND),
    ErrorCode.UNKNOWN_REQUEST: _refused("request_not_found", HTTPStatus.NOT_FOUND),
    ErrorCode.ALREADY_EXISTS: _refused("already_exists", HTTPStatus.CONFLICT),
    ErrorCode.UNAUTHENTICATED: _refused(
        "invalid_api_key", HTTPStatus.UNAUTHORIZED, {"www-authenticate": "Bearer"}
    ),
    ErrorCode.FORBIDDEN: _refused("forbidden", HTTPStatus.FORBIDDEN),
    ErrorCode.OVERLOADED: ErrorForm(HTTPStatus.TOO_MANY_REQUESTS, OVER_LIMIT, "queue_full"),
    ErrorCode.NOT_SERVABLE: _refused("not_servable", _UNSERVABLE),
    ErrorCode.UNKNOWN_FEATURE: _refused("unknown_feature", _UNSERVABLE),
    ErrorCode.UNSUPPORTED_MODEL: _refused("unsupported_model", _UNSERVABLE),
    ErrorCode.DOES_NOT_FIT: _refused("does_not_fit", _UNSERVABLE),
    ErrorCode.BAD_CHECKPOINT: _refused("bad_checkpoint", _UNSERVABLE),
    ErrorCode.CONFIG_ERROR: _refused("config_error", _UNSERVABLE),
    ErrorCode.IN_USE: _refused("in_use", HTTPStatus.CONFLICT),
    ErrorCode.ENDED: ErrorForm(HTTPStatus.CONFLICT, SERVER_FAULT, "ended"),
    ErrorCode.CANCELLED: ErrorForm(HTTPStatus.CONFLICT, SERVER_FAULT, "cancelled"),
    ErrorCode.DEADLINE_EXCEEDED: _refused("deadline_exceeded", HTTPStatus.REQUEST_TIMEOUT),
    ErrorCode.SLOW_READER: ErrorForm(HTTPStatus.CONFLICT, SERVER_FAULT, "slow_reader"),
    ErrorCode.UNAVAILABLE: ErrorForm(HTTPStatus.SERVICE_UNAVAILABLE, SERVER_FAULT, "unavailable"),
    ErrorCode.PROCESS_FAILED: ErrorForm(HTTPStatus.SERVICE_UNAVAILABLE, SERVER_FAULT, "process_failed"),
    ErrorCode.INTERNAL: _INTERNAL,
    ErrorCode.ILLEGAL_PLAN: _INTERNAL,
    ErrorCode.INTEGRITY: _INTERNAL,
}
"""The form of every error. 429 and 503 are for `retryable` errors only."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """A whole answer to a request that failed."""

    status: HTTPStatus
    headers: Mapping[str, str]
    body: ErrorBody

    @property
    def content(self) -> bytes:
        return self.body.model_dump_json().encode()


def error_answer(error: Exception) -> ErrorAnswer:
    """The answer for the client. An internal error is logged, with its id."""
    if isinstance(error, HttpRefusal):
        code = error.status.phrase.lower().replace(" ", "_")
        return _answer(ErrorForm(error.status, WRONG_REQUEST, code, error.headers), str(error), None)
    told = told_to_client(error)
    param = told.field if isinstance(told, InvalidRequest) else None
    if told.code is ErrorCode.NOT_FOUND:  # this dialect looks up nothing but models
        param = "model"
    return _answer(ERROR_FORMS[told.code], str(told), param, told.retry_s)


def _answer(form: ErrorForm, message: str, param: str | None, retry_s: float | None = None) -> ErrorAnswer:
    # The clients of OpenAI would otherwise try again after every 409 and 500.
    headers = {**form.headers, "x-should-retry": "false" if retry_s is None else "true"}
    if retry_s is not None:
        headers["retry-after"] = str(math.ceil(retry_s))
    detail = ErrorDetail(message=message[:MAX_ERROR_CHARS], type=form.type, param=param, code=form.code)
    return ErrorAnswer(form.status, headers, ErrorBody(error=detail))
