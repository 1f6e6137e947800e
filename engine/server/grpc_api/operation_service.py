"""Work that takes long: `tokenmux.v1.OperationService`."""

from contextlib import aclosing

from tokenmux.server.front.service import FrontService
from tokenmux.server.grpc_api.grpc_types import Context
from tokenmux.server.grpc_api.operation_messages import operation_message
from tokenmux.server.grpc_api.status import answering
from tokenmux.v1 import operations_pb2, operations_pb2_grpc


class OperationService(operations_pb2_grpc.OperationServiceServicer):
    """`tokenmux.v1.OperationService`."""

    def __init__(self, front: FrontService) -> None:
        self._front = front

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: Context
    ) -> operations_pb2.GetOperationResponse:
        async with answering(context):
            found = self._front.show_operation(request.name)
            return operations_pb2.GetOperationResponse(operation=operation_message(found))

    async def WatchOperation(self, request: operations_pb2.WatchOperationRequest, context: Context) -> None:
        async with answering(context), aclosing(self._front.watch_operation(request.name)) as views:
            async for view in views:
                await context.write(operations_pb2.WatchOperationResponse(operation=operation_message(view)))

    async def CancelOperation(
        self, request: operations_pb2.CancelOperationRequest, context: Context
    ) -> operations_pb2.CancelOperationResponse:
        async with answering(context):
            self._front.cancel_operation(request.name)
            return operations_pb2.CancelOperationResponse()

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        async with answering(context):
            found = map(operation_message, self._front.list_operations())
            return operations_pb2.ListOperationsResponse(operations=found)
