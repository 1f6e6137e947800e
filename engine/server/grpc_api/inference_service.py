"""Generation, tokenization and readiness: `tokenmux.v1.InferenceService`."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from functools import partial

from tokenmux.server.front.generation import StreamEvent
from tokenmux.server.front.pool_status import installed_version
from tokenmux.server.front.service import FrontService
from tokenmux.server.grpc_api.answer_messages import stream_response, whole_response
from tokenmux.server.grpc_api.ask_messages import ask_of
from tokenmux.server.grpc_api.chat_messages import text_or_chat_of
from tokenmux.server.grpc_api.embedding_messages import (
    embed_ask_of,
    embed_response,
    embedding_facts_message,
)
from tokenmux.server.grpc_api.field_paths import FEATURES
from tokenmux.server.grpc_api.grpc_types import Context
from tokenmux.server.grpc_api.key_interceptor import caller_of
from tokenmux.server.grpc_api.status import answering
from tokenmux.v1 import inference_pb2, inference_pb2_grpc

TOLD_AHEAD = "tokenmux-prompt-info-bin"
"""The metadata that tells of an accepted request ahead of its whole answer."""


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """`tokenmux.v1.InferenceService`."""

    def __init__(self, front: FrontService) -> None:
        self._front = front

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> inference_pb2.GenerateResponse:
        async with answering(context), self._open(request, context) as stream:
            return await whole_response(stream, partial(_tell, context))

    async def GenerateStream(self, request: inference_pb2.GenerateStreamRequest, context: Context) -> None:
        # `context.write` and not `yield`: when the client leaves, grpc cancels this coroutine where it waits,
        # so that leaving `open` cancels the request at once. A generator would only be closed when it is
        # garbage-collected.
        async with answering(context), self._open(request.request, context) as stream:
            async for event in stream:
                await context.write(stream_response(event))

    async def CancelGeneration(
        self, request: inference_pb2.CancelGenerationRequest, context: Context
    ) -> inference_pb2.CancelGenerationResponse:
        async with answering(context):
            self._front.cancel(request.request_id, caller_of(self._front.keys, context), request.tenant)
            return inference_pb2.CancelGenerationResponse()

    async def Embed(
        self, request: inference_pb2.EmbedRequest, context: Context
    ) -> inference_pb2.EmbedResponse:
        async with answering(context):
            ask = embed_ask_of(request, context.time_remaining())
            embedded = await self._front.embed(ask, caller_of(self._front.keys, context))
            return embed_response(request.model, embedded)

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
                embedding=embedding_facts_message(found.embedding),
            )

    async def ServerMetadata(
        self, request: inference_pb2.ServerMetadataRequest, context: Context
    ) -> inference_pb2.ServerMetadataResponse:
        return inference_pb2.ServerMetadataResponse(
            name="tokenmux", version=installed_version(), features=FEATURES
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
        ask = ask_of(request, context.time_remaining())
        return self._front.open(ask, caller_of(self._front.keys, context))


async def _tell(context: Context, info: inference_pb2.PromptInfo) -> None:
    """Tell a client, ahead of the whole output, with what it can ask for the same again."""
    await context.send_initial_metadata(((TOLD_AHEAD, info.SerializeToString()),))
