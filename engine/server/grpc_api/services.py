"""The gRPC services: each method translates, calls the front, and translates back.

They decide nothing. `tokenmux.server.grpc_api.status` turns errors into status.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from tokenmux.server.front.generation import FinishInfo, PromptInfo, StreamEvent, TokenDelta
from tokenmux.server.front.pool_status import PoolSnapshot
from tokenmux.server.front.service import FrontService
from tokenmux.server.grpc_api.grpc_types import Context
from tokenmux.server.grpc_api.inference_messages import (
    ask_of,
    finish_info_message,
    logprobs_message,
    prompt_info_message,
    stream_response,
    text_or_chat_of,
)
from tokenmux.server.grpc_api.key_interceptor import caller_of
from tokenmux.server.grpc_api.model_messages import model_message
from tokenmux.server.grpc_api.planning_messages import recorded_message, size_messages
from tokenmux.server.grpc_api.pool_messages import named_instance, status_message, wanted_device
from tokenmux.server.grpc_api.status import answering
from tokenmux.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    planning_pb2,
    planning_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
)

RECORDED_PER_MESSAGE = 1000
"""About 60 kB: far below any limit on messages."""


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """`tokenmux.v1.Inference`."""

    def __init__(self, front: FrontService) -> None:
        self._front = front

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> inference_pb2.GenerateResponse:
        async with answering(context), self._open(request, context) as stream:
            response = inference_pb2.GenerateResponse()
            texts = []
            async for event in stream:
                match event:
                    case PromptInfo():
                        response.prompt_info.CopyFrom(prompt_info_message(event))
                    case TokenDelta(_, token_ids, text, told):
                        response.token_ids.extend(token_ids)
                        response.logprobs.extend(map(logprobs_message, told))
                        texts.append(text)
                    case FinishInfo():
                        response.finish_info.CopyFrom(finish_info_message(event))
            response.text = "".join(texts)
            return response

    async def GenerateStream(self, request: inference_pb2.GenerateRequest, context: Context) -> None:
        # `context.write` and not `yield`: when the client leaves, grpc cancels this coroutine where it waits,
        # so that leaving `open` cancels the request at once. A generator would only be closed when it is
        # garbage-collected.
        async with answering(context), self._open(request, context) as stream:
            async for event in stream:
                await context.write(stream_response(event))

    async def Tokenize(
        self, request: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        async with answering(context):
            prompt = text_or_chat_of(request)
            return inference_pb2.TokenizeResponse(token_ids=await self._front.tokenize(request.model, prompt))

    async def ModelMetadata(
        self, request: inference_pb2.ModelMetadataRequest, context: Context
    ) -> inference_pb2.ModelMetadataResponse:
        async with answering(context):
            found = await self._front.about_model(request.model)
            return inference_pb2.ModelMetadataResponse(
                model=found.facts.id,
                max_context=found.facts.max_context,
                vocab_size=found.facts.vocab_size,
                has_chat_template=found.can_chat,
                end_token_ids=sorted(found.end_token_ids),
            )

    async def ServerReady(
        self, request: inference_pb2.ServerReadyRequest, context: Context
    ) -> inference_pb2.ServerReadyResponse:
        return inference_pb2.ServerReadyResponse(ready=self._front.ready)

    async def ModelReady(
        self, request: inference_pb2.ModelReadyRequest, context: Context
    ) -> inference_pb2.ModelReadyResponse:
        async with answering(context):
            return inference_pb2.ModelReadyResponse(ready=self._front.model_ready(request.model))

    def _open(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AbstractAsyncContextManager[AsyncIterator[StreamEvent]]:
        return self._front.open(ask_of(request), caller_of(self._front.keys, context))


class ModelsService(models_pb2_grpc.ModelsServicer):
    """`tokenmux.v1.Models`."""

    def __init__(self, front: FrontService) -> None:
        self._front = front

    async def List(
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        async with answering(context):
            return models_pb2.ListModelsResponse(models=map(model_message, self._front.list_models()))

    async def Get(self, request: models_pb2.GetModelRequest, context: Context) -> models_pb2.Model:
        async with answering(context):
            return model_message(self._front.show_model(request.name))

    async def Register(self, request: models_pb2.RegisterModelRequest, context: Context) -> models_pb2.Model:
        async with answering(context):
            return model_message(await self._front.register(request.name, request.source))

    async def Unregister(
        self, request: models_pb2.UnregisterModelRequest, context: Context
    ) -> models_pb2.UnregisterModelResponse:
        async with answering(context):
            await self._front.unregister(request.name, force=request.force)
            return models_pb2.UnregisterModelResponse()

    async def Load(self, request: models_pb2.LoadModelRequest, context: Context) -> models_pb2.Model:
        async with answering(context):
            return model_message(await self._front.load(request.name, wait=request.wait))

    async def Unload(self, request: models_pb2.UnloadModelRequest, context: Context) -> models_pb2.Model:
        async with answering(context):
            return model_message(await self._front.unload(request.name))

    async def Pin(self, request: models_pb2.PinModelRequest, context: Context) -> models_pb2.Model:
        async with answering(context):
            return model_message(await self._front.pin(request.name, pinned=request.pinned))


class PoolService(pool_pb2_grpc.PoolServicer):
    """`tokenmux.v1.Pool`."""

    def __init__(self, front: FrontService) -> None:
        self._front = front
        self._latest: tuple[PoolSnapshot, pool_pb2.StatusResponse] | None = None
        """A status and its message, kept for all who ask at the same moment."""

    async def Status(self, request: pool_pb2.StatusRequest, context: Context) -> pool_pb2.StatusResponse:
        async with answering(context):
            return self._message(self._front.status())

    async def WatchStatus(self, request: pool_pb2.WatchStatusRequest, context: Context) -> None:
        async with answering(context), self._front.watch_status(request.min_interval_s) as statuses:
            async for status in statuses:
                await context.write(self._message(status))

    async def Trace(self, request: pool_pb2.TraceRequest, context: Context) -> pool_pb2.TraceResponse:
        async with answering(context):
            trace = await self._front.trace(request.last_s)
            return pool_pb2.TraceResponse(
                chrome_trace=trace.chrome_trace, n_spans=trace.n_spans, seconds=trace.seconds
            )

    async def Resize(self, request: pool_pb2.ResizeRequest, context: Context) -> pool_pb2.ResizeResponse:
        async with answering(context):
            instance = request.instance if request.HasField("instance") else None
            arena_bytes = await self._front.resize(request.arena_bytes, instance)
            return pool_pb2.ResizeResponse(arena_bytes=arena_bytes)

    async def AddDevice(
        self, request: pool_pb2.AddDeviceRequest, context: Context
    ) -> pool_pb2.AddDeviceResponse:
        async with answering(context):
            instance = await self._front.add_device(wanted_device(request))
            return pool_pb2.AddDeviceResponse(instance=instance)

    async def DrainDevice(
        self, request: pool_pb2.DrainDeviceRequest, context: Context
    ) -> pool_pb2.DrainDeviceResponse:
        async with answering(context):
            await self._front.drain_device(named_instance(request), undo=request.undo)
            return pool_pb2.DrainDeviceResponse()

    async def RemoveDevice(
        self, request: pool_pb2.RemoveDeviceRequest, context: Context
    ) -> pool_pb2.RemoveDeviceResponse:
        async with answering(context):
            await self._front.remove_device(named_instance(request))
            return pool_pb2.RemoveDeviceResponse()

    def _message(self, status: PoolSnapshot) -> pool_pb2.StatusResponse:
        if self._latest is None or self._latest[0] is not status:
            self._latest = status, status_message(status)
        return self._latest[1]


class PlanningService(planning_pb2_grpc.PlanningServicer):
    """`tokenmux.v1.Planning`."""

    def __init__(self, front: FrontService) -> None:
        self._front = front

    async def Catalogue(
        self, request: planning_pb2.CatalogueRequest, context: Context
    ) -> planning_pb2.CatalogueResponse:
        async with answering(context):
            return planning_pb2.CatalogueResponse(models=size_messages(self._front.model_facts()))

    async def RecordedTraffic(self, request: planning_pb2.RecordedTrafficRequest, context: Context) -> None:
        async with answering(context):
            lines = self._front.recorded_traffic(request.last_s)
            for start in range(0, len(lines), RECORDED_PER_MESSAGE):
                batch = map(recorded_message, lines[start : start + RECORDED_PER_MESSAGE])
                await context.write(planning_pb2.RecordedTrafficResponse(requests=batch))
