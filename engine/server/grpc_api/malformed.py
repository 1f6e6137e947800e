"""Requests that are not valid protobuf, such as text that is not UTF-8, and those that are too large, end
with INVALID_ARGUMENT.

By default grpc answers INTERNAL ("exception deserializing request") to what is the caller's mistake, and logs
a traceback; and it answers RESOURCE_EXHAUSTED, which means "try again later", to a message that will always
be too large. gRPC's own limit, far above ours, remains for what should not even be read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from tokenmux.core.errors import InvalidRequest
from tokenmux.server.grpc_api.grpc_types import Context, Continuation, Handler, Interceptor
from tokenmux.server.grpc_api.status import refusal_of

OUR_SERVICES = ("/tokenmux.", "/inference.")
MESSAGE = (
    "the request cannot be decoded: it must be protobuf as in tokenmux/v1, and its texts must be valid UTF-8"
)


GRPC_LIMIT_TIMES = 4
"""gRPC's own limit is this many times ours."""


@dataclass(frozen=True, slots=True)
class _Malformed:
    """Stands for a request that could not be decoded, or was too large."""

    message: str = MESSAGE


class MalformedInterceptor(Interceptor):
    """Guards the methods of our own services, which all take a single request."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` is the size of the largest message that is decoded."""
        self._max_bytes = max_bytes

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(OUR_SERVICES):
            return handler
        if handler.response_streaming:
            kind, method = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        else:
            kind, method = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        return kind(
            _guard(method),
            _lenient(handler.request_deserializer, self._max_bytes),
            handler.response_serializer,
        )


def _lenient(deserializer: Any, max_bytes: int) -> Callable[[bytes], Any]:
    def deserialize(data: bytes) -> Any:
        if len(data) > max_bytes:
            return _Malformed(
                f"the request has {len(data)} bytes, and the server takes {max_bytes}: shorten it, "
                "or raise `max_message` "
                "in the server's pool.yaml"
            )
        try:
            return deserializer(data)
        except (DecodeError, UnicodeDecodeError):
            return _Malformed()

    return deserialize


def _guard(method: Any) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> Any:
        if isinstance(request, _Malformed):
            await refusal_of(InvalidRequest(request.message)).end(context)
        return await method(request, context)

    return call
