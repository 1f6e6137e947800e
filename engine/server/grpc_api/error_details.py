"""What programs are told of an error, as google.rpc types in a call's trailers: a reason that stays, when to
try again, and which fields are wrong."""

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from tokenmux.core.errors import InvalidRequest, TokenmuxError
from tokenmux.server.grpc_api.field_paths import path_of

DETAILS_KEY = "grpc-status-details-bin"
"""Where gRPC libraries of all languages look for a google.rpc.Status."""
DOMAIN = "tokenmux"
MAX_DETAIL_CHARS = 256


def details_of(error: TokenmuxError, code: grpc.StatusCode, message: str) -> Status:
    """The status, with the same code and message as the call itself."""
    status = Status(code=code.value[0], message=message)
    metadata = {name: value[:MAX_DETAIL_CHARS] for name, value in error.details.items()}
    status.details.add().Pack(ErrorInfo(reason=error.code.name, domain=DOMAIN, metadata=metadata))
    if error.retry_s is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_s * 1e9))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    path = path_of(error) if isinstance(error, InvalidRequest) else None
    if path is not None:
        violation = BadRequest.FieldViolation(field=path, description=message[:MAX_DETAIL_CHARS])
        status.details.add().Pack(BadRequest(field_violations=[violation]))
    return status
