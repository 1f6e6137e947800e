"""The catalogue: `tokenmux.v1.ModelService`."""

from tokenmux.server.front.service import FrontService
from tokenmux.server.grpc_api.grpc_types import Context
from tokenmux.server.grpc_api.model_messages import basic_model_message, model_message, requested_page
from tokenmux.server.grpc_api.operation_messages import operation_message
from tokenmux.server.grpc_api.status import answering
from tokenmux.v1 import models_pb2, models_pb2_grpc


class ModelService(models_pb2_grpc.ModelServiceServicer):
    """`tokenmux.v1.ModelService`."""

    def __init__(self, front: FrontService) -> None:
        self._front = front

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        async with answering(context):
            models, token = requested_page(request, self._front.list_models())
            convert = basic_model_message if request.view == models_pb2.VIEW_BASIC else model_message
            return models_pb2.ListModelsResponse(models=map(convert, models), next_page_token=token)

    async def GetModel(
        self, request: models_pb2.GetModelRequest, context: Context
    ) -> models_pb2.GetModelResponse:
        async with answering(context):
            return models_pb2.GetModelResponse(model=model_message(self._front.show_model(request.name)))

    async def RegisterModel(
        self, request: models_pb2.RegisterModelRequest, context: Context
    ) -> models_pb2.RegisterModelResponse:
        async with answering(context):
            operation = operation_message(self._front.register(request.name, request.source))
            return models_pb2.RegisterModelResponse(operation=operation)

    async def UnregisterModel(
        self, request: models_pb2.UnregisterModelRequest, context: Context
    ) -> models_pb2.UnregisterModelResponse:
        async with answering(context):
            await self._front.unregister(request.name, force=request.force)
            return models_pb2.UnregisterModelResponse()

    async def LoadModel(
        self, request: models_pb2.LoadModelRequest, context: Context
    ) -> models_pb2.LoadModelResponse:
        async with answering(context):
            return models_pb2.LoadModelResponse(
                model=model_message(await self._front.load(request.name, wait=request.wait))
            )

    async def UnloadModel(
        self, request: models_pb2.UnloadModelRequest, context: Context
    ) -> models_pb2.UnloadModelResponse:
        async with answering(context):
            return models_pb2.UnloadModelResponse(model=model_message(await self._front.unload(request.name)))

    async def PinModel(
        self, request: models_pb2.PinModelRequest, context: Context
    ) -> models_pb2.PinModelResponse:
        async with answering(context):
            return models_pb2.PinModelResponse(
                model=model_message(await self._front.pin(request.name, pinned=request.pinned))
            )
