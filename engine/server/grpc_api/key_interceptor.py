"""Refuses calls whose API key does not open their service, before their request is read.

Services are separate in the API so that the name of the method decides. Health checks are open to all,
so that load balancers need no key.
"""

from collections.abc import Iterable

import grpc

from tokenmux.core.errors import TokenmuxError
from tokenmux.server.front.api_keys import AUTHORIZATION, ApiKeys, Key, Scope
from tokenmux.server.grpc_api.grpc_types import Context, Continuation, Handler, Interceptor
from tokenmux.server.grpc_api.open_inference_service import OPEN_INFERENCE_NAME
from tokenmux.server.grpc_api.status import Refusal, refusal_of

OPEN_SERVICES = frozenset({"grpc.health.v1.Health"})
INFERENCE_SERVICES = frozenset({"tokenmux.v1.InferenceService", OPEN_INFERENCE_NAME})


class KeyInterceptor(Interceptor):
    """Asks `ApiKeys` about every call."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        service = handler_call_details.method.strip("/").partition("/")[0]
        if handler is None or service in OPEN_SERVICES:
            return handler
        needed = Scope.INFERENCE if service in INFERENCE_SERVICES else Scope.ADMIN
        try:
            self._keys.check(_authorization(handler_call_details.invocation_metadata), needed, service)
        except TokenmuxError as error:
            return _refuse(handler, refusal_of(error))
        return handler


def caller_of(keys: ApiKeys, context: Context) -> Key | None:
    """The key that a call carries; None if it has none or an unknown one."""
    return keys.caller(_authorization(context.invocation_metadata()))


def _authorization(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    for name, value in metadata or ():
        if name == AUTHORIZATION and isinstance(value, str):
            return value
    return None


def _refuse(handler: Handler, refusal: Refusal) -> Handler:
    """A handler for the same kind of call that always ends it with this status."""

    async def end(_: object, context: Context) -> None:
        await refusal.end(context)

    kind = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return kind(end)
