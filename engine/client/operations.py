"""Work on the server that goes on without its caller: `Client.operations` and `AsyncClient.operations`."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc

from tokenmux.client import pool_values
from tokenmux.client.deadlines import deadline_s
from tokenmux.client.errors import translated
from tokenmux.client.operator_values import Operation
from tokenmux.v1 import operations_pb2, operations_pb2_grpc


class Operations:
    """`Client.operations`. Names are those of `Operation.name`."""

    def __init__(self, channel: grpc.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub = operations_pb2_grpc.OperationServiceStub(channel)  # type: ignore[no-untyped-call]
        self._metadata = metadata

    def list(self, *, timeout_s: float | None = None) -> tuple[Operation, ...]:
        """Those under way and the last that ended, the newest first."""
        request = operations_pb2.ListOperationsRequest()
        response = self._call(self._stub.ListOperations, request, timeout_s)
        return tuple(map(pool_values.operation, response.operations))

    def get(self, name: str, *, timeout_s: float | None = None) -> Operation:
        request = operations_pb2.GetOperationRequest(name=name)
        return pool_values.operation(self._call(self._stub.GetOperation, request, timeout_s).operation)

    def cancel(self, name: str, *, timeout_s: float | None = None) -> None:
        """Ask it to end, with nothing left behind. Watch it to know how it ends."""
        self._call(self._stub.CancelOperation, operations_pb2.CancelOperationRequest(name=name), timeout_s)

    def watch(self, name: str, *, timeout_s: float | None = None) -> Iterator[Operation]:
        """The operation now and after each change, until it has ended. Raises CallFailed if it failed or was
        cancelled, after that last state."""
        request = operations_pb2.WatchOperationRequest(name=name)
        call = self._stub.WatchOperation(request, timeout=deadline_s(timeout_s), metadata=self._metadata)
        try:
            with translated():
                for response in call:
                    yield pool_values.operation(response.operation)
                    pool_values.completed(response.operation)
        finally:
            call.cancel()

    def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        with translated():
            return method(request, timeout=deadline_s(timeout_s), metadata=self._metadata)


class AsyncOperations:
    """`AsyncClient.operations`. Names are those of `Operation.name`."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub = operations_pb2_grpc.OperationServiceStub(channel)  # type: ignore[no-untyped-call]
        self._metadata = metadata

    async def list(self, *, timeout_s: float | None = None) -> tuple[Operation, ...]:
        """Those under way and the last that ended, the newest first."""
        request = operations_pb2.ListOperationsRequest()
        response = await self._call(self._stub.ListOperations, request, timeout_s)
        return tuple(map(pool_values.operation, response.operations))

    async def get(self, name: str, *, timeout_s: float | None = None) -> Operation:
        request = operations_pb2.GetOperationRequest(name=name)
        response = await self._call(self._stub.GetOperation, request, timeout_s)
        return pool_values.operation(response.operation)

    async def cancel(self, name: str, *, timeout_s: float | None = None) -> None:
        """Ask it to end, with nothing left behind. Watch it to know how it ends."""
        request = operations_pb2.CancelOperationRequest(name=name)
        await self._call(self._stub.CancelOperation, request, timeout_s)

    async def watch(self, name: str, *, timeout_s: float | None = None) -> AsyncIterator[Operation]:
        """The operation now and after each change, until it has ended. Raises CallFailed if it failed or was
        cancelled, after that last state."""
        request = operations_pb2.WatchOperationRequest(name=name)
        call = self._stub.WatchOperation(request, timeout=deadline_s(timeout_s), metadata=self._metadata)
        try:
            with translated():
                async for response in call:
                    yield pool_values.operation(response.operation)
                    pool_values.completed(response.operation)
        finally:
            call.cancel()

    async def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        with translated():
            return await method(request, timeout=deadline_s(timeout_s), metadata=self._metadata)
