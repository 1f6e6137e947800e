"""Input for capacity planning: `tokenmux.v1.PlanningService`."""

from tokenmux.server.front.service import FrontService
from tokenmux.server.grpc_api.grpc_types import Context
from tokenmux.server.grpc_api.planning_messages import batches, recorded_message, size_messages
from tokenmux.server.grpc_api.status import answering
from tokenmux.v1 import planning_pb2, planning_pb2_grpc


class PlanningService(planning_pb2_grpc.PlanningServiceServicer):
    """`tokenmux.v1.PlanningService`."""

    def __init__(self, front: FrontService) -> None:
        self._front = front

    async def GetCatalogue(
        self, request: planning_pb2.GetCatalogueRequest, context: Context
    ) -> planning_pb2.GetCatalogueResponse:
        async with answering(context):
            return planning_pb2.GetCatalogueResponse(models=size_messages(self._front.model_facts()))

    async def GetRecordedTraffic(
        self, request: planning_pb2.GetRecordedTrafficRequest, context: Context
    ) -> None:
        async with answering(context):
            lines = self._front.recorded_traffic(request.last_s)
            for batch in batches(lines):
                messages = map(recorded_message, batch)
                await context.write(planning_pb2.GetRecordedTrafficResponse(requests=messages))
