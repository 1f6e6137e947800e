"""Names for grpc's generic types: generic for the type checker only, plain classes at run time."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
    ServiceHandler = grpc.GenericRpcHandler[Any, Any]
else:
    Interceptor = grpc.aio.ServerInterceptor
    Context = grpc.aio.ServicerContext
    Handler = grpc.RpcMethodHandler
    ServiceHandler = grpc.GenericRpcHandler

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]
