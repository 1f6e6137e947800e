"""Devices and the pool's status: `tokenmux.v1.PoolService`."""

from tokenmux.server.front.pool_status import PoolSnapshot
from tokenmux.server.front.service import FrontService
from tokenmux.server.grpc_api.grpc_types import Context
from tokenmux.server.grpc_api.pool_messages import named_instance, status_message, wanted_device
from tokenmux.server.grpc_api.status import answering
from tokenmux.v1 import pool_pb2, pool_pb2_grpc


class PoolService(pool_pb2_grpc.PoolServiceServicer):
    """`tokenmux.v1.PoolService`."""

    def __init__(self, front: FrontService) -> None:
        self._front = front
        self._latest: tuple[PoolSnapshot, pool_pb2.PoolStatus] | None = None
        """A status and its message, kept for all who ask at the same moment."""

    async def GetStatus(
        self, request: pool_pb2.GetStatusRequest, context: Context
    ) -> pool_pb2.GetStatusResponse:
        async with answering(context):
            return pool_pb2.GetStatusResponse(status=self._message(self._front.status()))

    async def WatchStatus(self, request: pool_pb2.WatchStatusRequest, context: Context) -> None:
        async with answering(context), self._front.watch_status(request.min_interval_s) as statuses:
            async for status in statuses:
                await context.write(pool_pb2.WatchStatusResponse(status=self._message(status)))

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

    def _message(self, status: PoolSnapshot) -> pool_pb2.PoolStatus:
        if self._latest is None or self._latest[0] is not status:
            self._latest = status, status_message(status)
        return self._latest[1]
