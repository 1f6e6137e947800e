"""Requests that are no valid protobuf, such as text that is not UTF-8, end with INVALID_ARGUMENT.

Left to itself grpc answers INTERNAL ("exception deserializing request") for what is the caller's fault, and logs a traceback.
"""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from tokenmux.engine.server.grpc_types import Context, Continuation, Handler, Interceptor

OUR_SERVICES = "/tokenmux."
MESSAGE = (
    "the request cannot be decoded: it must be protobuf as in tokenmux/v1, and its texts must be valid UTF-8"
)


class _Malformed:
    """Stands in the place of a request that could not be decoded."""


class MalformedInterceptor(Interceptor):
    """Guards the methods of our own services, which all take a single request."""

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
        return kind(_guard(method), _lenient(handler.request_deserializer), handler.response_serializer)


def _lenient(deserializer: Any) -> Callable[[bytes], Any]:
    def deserialize(data: bytes) -> Any:
        try:
            return deserializer(data)
        except (DecodeError, UnicodeDecodeError):
            return _Malformed()

    return deserialize


def _guard(method: Any) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> Any:
        if isinstance(request, _Malformed):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, MESSAGE)
        return await method(request, context)

    return call
