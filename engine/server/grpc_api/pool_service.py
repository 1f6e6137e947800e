"""Devices and the pool's status: `tokenmux.v1.PoolService`."""

from tokenmux.server.front.service import FrontService
from tokenmux.server.grpc_api.grpc_types import Context
from tokenmux.server.grpc_api.model_messages import requested_page
from tokenmux.server.grpc_api.pool_messages import (
    named_instance,
    wanted_device,
)
from tokenmux.server.grpc_api.status import answering
from tokenmux.server.grpc_api.status_deltas import StatusDeltas
from tokenmux.v1 import models_pb2, pool_pb2, pool_pb2_grpc


class PoolService(pool_pb2_grpc.PoolServiceServicer):
    """`tokenmux.v1.PoolService`."""

    def __init__(self, front: FrontService) -> None:
        self._front = front
        self._deltas = StatusDeltas()

    async def GetStatus(
        self, request: pool_pb2.GetStatusRequest, context: Context
    ) -> pool_pb2.GetStatusResponse:
        async with answering(context):
            status = self._front.status()
            self._deltas.take(status)
            models, token = requested_page(request, status.models)
            if request.view == models_pb2.VIEW_BASIC:
                return pool_pb2.GetStatusResponse(status=self._deltas.since(0, basic=True).status)
            return pool_pb2.GetStatusResponse(status=self._deltas.page(models), next_page_token=token)

    async def WatchStatus(self, request: pool_pb2.WatchStatusRequest, context: Context) -> None:
        basic, version = request.view == models_pb2.VIEW_BASIC, 0
        async with answering(context), self._front.watch_status(request.min_interval_s) as statuses:
            async for status in statuses:
                self._deltas.take(status)
                response = self._deltas.since(version, basic=basic)
                version = self._deltas.version
                await context.write(response)

    async def GetTrace(
        self, request: pool_pb2.GetTraceRequest, context: Context
    ) -> pool_pb2.GetTraceResponse:
        async with answering(context):
            trace = await self._front.trace(request.last_s)
            return pool_pb2.GetTraceResponse(
                chrome_trace=trace.chrome_trace, n_spans=trace.n_spans, seconds=trace.seconds
            )

    async def ResizeDevice(
        self, request: pool_pb2.ResizeDeviceRequest, context: Context
    ) -> pool_pb2.ResizeDeviceResponse:
        async with answering(context):
            instance = request.instance if request.HasField("instance") else None
            arena_bytes = await self._front.resize(request.arena_bytes, instance)
            return pool_pb2.ResizeDeviceResponse(arena_bytes=arena_bytes)

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
