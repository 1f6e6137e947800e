"""The gRPC services: each method translates, calls the front or the administration, and translates back.

They decide nothing. `tokenmux.server.grpc_api.status` turns errors into status.
"""

import asyncio
import math
import time

from tokenmux.core.errors import ConfigError, InvalidRequest, Overloaded
from tokenmux.scheduler.metrics.histogram import BOUNDS_S
from tokenmux.scheduler.metrics.timeline import chrome_trace, seconds_covered
from tokenmux.server.front.administration import Administration
from tokenmux.server.front.front import Front
from tokenmux.server.front.generation import Ask, FinishInfo, PromptInfo, TokenDelta
from tokenmux.server.grpc_api import convert
from tokenmux.server.grpc_api.access import Access
from tokenmux.server.grpc_api.grpc_types import Context
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

    def __init__(self, front: Front, access: Access) -> None:
        self._front = front
        self._access = access

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> inference_pb2.GenerateResponse:
        async with answering(context), self._front.open(self._ask(request, context)) as stream:
            response = inference_pb2.GenerateResponse()
            texts = []
            async for event in stream:
                match event:
                    case PromptInfo():
                        response.prompt_info.CopyFrom(convert.prompt_info(event))
                    case TokenDelta(_, token_ids, text):
                        response.token_ids.extend(token_ids)
                        texts.append(text)
                    case FinishInfo():
                        response.finish_info.CopyFrom(convert.finish_info(event))
            response.text = "".join(texts)
            return response

    async def GenerateStream(self, request: inference_pb2.GenerateRequest, context: Context) -> None:
        # `context.write` and not `yield`: when the client leaves, grpc cancels this coroutine where it waits,
        # so that leaving `open` cancels the request at once. A generator would only be closed when it is
        # garbage-collected.
        async with answering(context), self._front.open(self._ask(request, context)) as stream:
            async for event in stream:
                await context.write(convert.stream_response(event))

    async def Tokenize(
        self, request: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        async with answering(context):
            prompt = convert.text_or_chat_of(request)
            return inference_pb2.TokenizeResponse(token_ids=await self._front.tokenize(request.model, prompt))

    async def ModelMetadata(
        self, request: inference_pb2.ModelMetadataRequest, context: Context
    ) -> inference_pb2.ModelMetadataResponse:
        async with answering(context):
            found = await self._front.metadata(request.model)
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
            served = self._front.models.find(request.model)
            return inference_pb2.ModelReadyResponse(ready=self._front.ready and served.refusal is None)

    def _ask(self, request: inference_pb2.GenerateRequest, context: Context) -> Ask:
        key = self._access.caller(context.invocation_metadata())
        return convert.ask_of(request, None if key is None else key.name)


class ModelsService(models_pb2_grpc.ModelsServicer):
    """`tokenmux.v1.Models`."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def List(
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        async with answering(context):
            return models_pb2.ListModelsResponse(models=map(convert.model, self._administration.models()))

    async def Get(self, request: models_pb2.GetModelRequest, context: Context) -> models_pb2.Model:
        async with answering(context):
            return convert.model(self._administration.model(request.name))

    async def Register(self, request: models_pb2.RegisterModelRequest, context: Context) -> models_pb2.Model:
        async with answering(context):
            return convert.model(await self._administration.register(request.name, request.source))

    async def Unregister(
        self, request: models_pb2.UnregisterModelRequest, context: Context
    ) -> models_pb2.UnregisterModelResponse:
        async with answering(context):
            await self._administration.unregister(request.name, force=request.force)
            return models_pb2.UnregisterModelResponse()

    async def Load(self, request: models_pb2.LoadModelRequest, context: Context) -> models_pb2.Model:
        async with answering(context):
            return convert.model(await self._administration.load(request.name, wait=request.wait))

    async def Unload(self, request: models_pb2.UnloadModelRequest, context: Context) -> models_pb2.Model:
        async with answering(context):
            return convert.model(await self._administration.unload(request.name))

    async def Pin(self, request: models_pb2.PinModelRequest, context: Context) -> models_pb2.Model:
        async with answering(context):
            return convert.model(await self._administration.pin(request.name, pinned=request.pinned))


MAX_STATUS_WATCHERS = 128
WATCH_INTERVAL_S = 0.1
"""Shortest time between two messages to a watcher."""
FRESH_S = 0.05
"""One status serves all callers within this time, unless something changed: for 1,000 models it takes 20
ms."""


class PoolService(pool_pb2_grpc.PoolServicer):
    """`tokenmux.v1.Pool`."""

    def __init__(self, front: Front, administration: Administration, version: str) -> None:
        self._front = front
        self._administration = administration
        self._version = version
        self._started_s = time.monotonic()
        self._n_watchers = 0
        self._latest = pool_pb2.StatusResponse()
        self._latest_of: tuple[int, int] | None = None
        """The version of the front, and its number of requests, that `_latest` shows."""

    async def Status(self, request: pool_pb2.StatusRequest, context: Context) -> pool_pb2.StatusResponse:
        async with answering(context):
            return self._status()

    async def WatchStatus(self, request: pool_pb2.WatchStatusRequest, context: Context) -> None:
        async with answering(context):
            _check_seconds("min_interval_s", request.min_interval_s)
            if self._n_watchers >= MAX_STATUS_WATCHERS:
                raise Overloaded(
                    f"{MAX_STATUS_WATCHERS} clients watch the status already: ask for it less often instead"
                )
            self._n_watchers += 1
            try:
                await self._watch(max(request.min_interval_s, WATCH_INTERVAL_S), context)
            finally:
                self._n_watchers -= 1

    async def Trace(self, request: pool_pb2.TraceRequest, context: Context) -> pool_pb2.TraceResponse:
        async with answering(context):
            _check_seconds("last_s", request.last_s)
            spans = await self._front.trace(request.last_s or math.inf)
            document = await asyncio.to_thread(chrome_trace, spans)
            return pool_pb2.TraceResponse(
                chrome_trace=document, n_spans=len(spans), seconds=seconds_covered(spans)
            )

    async def Resize(self, request: pool_pb2.ResizeRequest, context: Context) -> pool_pb2.ResizeResponse:
        async with answering(context):
            arena_bytes = await self._administration.resize(request.arena_bytes)
            return pool_pb2.ResizeResponse(arena_bytes=arena_bytes)

    async def _watch(self, interval_s: float, context: Context) -> None:
        version = self._front.changes.version
        while not self._front.draining:  # a watcher must not hold up the end
            await context.write(self._status())
            await asyncio.sleep(interval_s)
            version = await self._front.changes.after(version)

    def _status(self) -> pool_pb2.StatusResponse:
        """The present status, one message for all callers at the same moment."""
        now_s = time.monotonic() - self._started_s
        shows = (self._front.changes.version, self._front.n_live)
        if shows != self._latest_of or now_s - self._latest.uptime_s > FRESH_S:
            self._latest, self._latest_of = self._make_status(), shows
        return self._latest

    def _make_status(self) -> pool_pb2.StatusResponse:
        status, usage = self._front.worker_status, self._front.usage
        instances = [] if status is None else [convert.instance(status, usage)]
        return pool_pb2.StatusResponse(
            version=self._version,
            uptime_s=time.monotonic() - self._started_s,
            n_requests=self._front.n_live,
            max_requests=self._front.limits.max_requests,
            n_restarts=self._front.n_restarts,
            instances=instances,
            models=map(convert.model, self._administration.models()),
            tenants=convert.tenants(usage),
            duration_bounds_s=BOUNDS_S,
            devices_saved=usage.devices_saved(len(instances)),
            devices_saved_dedicated=usage.devices_saved_dedicated(len(instances)),
        )


class PlanningService(planning_pb2_grpc.PlanningServicer):
    """`tokenmux.v1.Planning`."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def Catalogue(
        self, request: planning_pb2.CatalogueRequest, context: Context
    ) -> planning_pb2.CatalogueResponse:
        async with answering(context):
            return planning_pb2.CatalogueResponse(
                models=convert.sizes(
                    served.facts for served in self._front.models if served.entry is not None
                )
            )

    async def RecordedTraffic(self, request: planning_pb2.RecordedTrafficRequest, context: Context) -> None:
        async with answering(context):
            _check_seconds("last_s", request.last_s)
            recorder = self._front.recorder
            if recorder is None or not recorder.window:
                raise ConfigError(
                    "this server records no traffic: set `record_traffic.window` above 0 in its pool.yaml"
                )
            lines = recorder.recorded(request.last_s, self._front.now_s())
            for start in range(0, len(lines), RECORDED_PER_MESSAGE):
                batch = map(convert.recorded, lines[start : start + RECORDED_PER_MESSAGE])
                await context.write(planning_pb2.RecordedTrafficResponse(requests=batch))


def _check_seconds(name: str, seconds: float) -> None:
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InvalidRequest(f"{name} {seconds:g}: use seconds, 0 or more")
