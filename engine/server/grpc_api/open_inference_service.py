"""Health and metadata of the Open Inference Protocol: `inference.GRPCInferenceService`."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from tokenmux.server.front.open_inference import ONLY_VERSION, PLATFORM, OpenInference
from tokenmux.server.front.service import FrontService
from tokenmux.server.grpc_api.grpc_types import Context, ServiceHandler
from tokenmux.server.grpc_api.status import answering
from tokenmux.v1 import open_inference_pb2 as pb2

OPEN_INFERENCE_NAME = "inference.GRPCInferenceService"


class OpenInferenceService:
    """Translates for `OpenInference`. Other methods of the protocol are UNIMPLEMENTED."""

    def __init__(self, front: FrontService) -> None:
        self._answers = OpenInference(front)

    def handler(self) -> ServiceHandler:
        """The methods by name, for a server. Nothing is generated for them, since code of the protocol's own
        package would claim its name."""
        methods: dict[str, tuple[type[Any], Callable[[Any, Context], Awaitable[Any]]]] = {
            "ServerLive": (pb2.ServerLiveRequest, self.server_live),
            "ServerReady": (pb2.ServerReadyRequest, self.server_ready),
            "ModelReady": (pb2.ModelReadyRequest, self.model_ready),
            "ServerMetadata": (pb2.ServerMetadataRequest, self.server_metadata),
            "ModelMetadata": (pb2.ModelMetadataRequest, self.model_metadata),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                method,
                request_deserializer=request.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, (request, method) in methods.items()
        }
        return grpc.method_handlers_generic_handler(OPEN_INFERENCE_NAME, handlers)

    async def server_live(self, request: pb2.ServerLiveRequest, context: Context) -> pb2.ServerLiveResponse:
        return pb2.ServerLiveResponse(live=True)

    async def server_ready(
        self, request: pb2.ServerReadyRequest, context: Context
    ) -> pb2.ServerReadyResponse:
        return pb2.ServerReadyResponse(ready=self._answers.ready)

    async def model_ready(self, request: pb2.ModelReadyRequest, context: Context) -> pb2.ModelReadyResponse:
        async with answering(context):
            return pb2.ModelReadyResponse(ready=self._answers.model_ready(request.name, request.version))

    async def server_metadata(
        self, request: pb2.ServerMetadataRequest, context: Context
    ) -> pb2.ServerMetadataResponse:
        server = self._answers.server()
        return pb2.ServerMetadataResponse(name=server.name, version=server.version)

    async def model_metadata(
        self, request: pb2.ModelMetadataRequest, context: Context
    ) -> pb2.ModelMetadataResponse:
        async with answering(context):
            name = self._answers.model_name(request.name, request.version)
            return pb2.ModelMetadataResponse(name=name, versions=[ONLY_VERSION], platform=PLATFORM)
