"""The standard health service (grpc.health.v1), answered from the front's present state.

Names: "" and "tokenmux.v1.Inference" are SERVING while requests are accepted, "models/NAME" while requests
for that model are. A model that is not served is NOT_FOUND to `Check` and SERVICE_UNKNOWN to `Watch`, which
the protocol uses for names that may appear later.

grpc_health's own asyncio servicer writes to watchers under a lock that setting a status needs: one client
that reads nothing stops health for all. Here a watcher waits only for its own connection.
"""

from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckResponse

from tokenmux.core.errors import NotFound, Overloaded
from tokenmux.server.front.front import Front
from tokenmux.server.front.names import check_name_length
from tokenmux.server.grpc_api.grpc_types import Context
from tokenmux.server.grpc_api.status import answering

OVERALL = ("", "tokenmux.v1.Inference")
MODELS = "models/"
MAX_HEALTH_WATCHERS = 1000


def model_service(name: str) -> str:
    """The health service's name for a model."""
    return MODELS + name


class HealthService:
    """The health service; see the module."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._n_watchers = 0
        self._stopping = False

    def stop(self) -> None:
        """Report NOT_SERVING for everything from now on."""
        self._stopping = True
        self._front.changes.notify()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> HealthCheckResponse:
        async with answering(context):
            status = self._status(request.service)
            if status == HealthCheckResponse.SERVICE_UNKNOWN:
                raise NotFound(
                    f"there is no health service {request.service!r}: ask for "
                    f"{model_service('NAME')!r}, or ''"
                )
            return HealthCheckResponse(status=status)

    async def List(
        self, request: health_pb2.HealthListRequest, context: Context
    ) -> health_pb2.HealthListResponse:
        names = [*OVERALL, *(model_service(served.name) for served in self._front.models)]
        return health_pb2.HealthListResponse(
            statuses={name: HealthCheckResponse(status=self._status(name)) for name in names}
        )

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        async with answering(context):
            if self._n_watchers >= MAX_HEALTH_WATCHERS:
                raise Overloaded(
                    f"{MAX_HEALTH_WATCHERS} clients watch health already: check it from time to time instead"
                )
            self._n_watchers += 1
            try:
                await self._watch(request.service, context)
            finally:
                self._n_watchers -= 1

    async def _watch(self, service: str, context: Context) -> None:
        version, told = self._front.changes.version, None
        while True:
            status = self._status(service)
            if status != told:
                await context.write(HealthCheckResponse(status=status))
                told = status
            if self._stopping:
                return
            version = await self._front.changes.after(version)

    def _status(self, service: str) -> HealthCheckResponse.ServingStatus:
        """Raises InvalidRequest for an impossible name."""
        if service in OVERALL:
            serving = self._front.ready
        else:
            name = service.removeprefix(MODELS)
            check_name_length(name)
            if not service.startswith(MODELS) or name not in self._front.models:
                return HealthCheckResponse.SERVICE_UNKNOWN
            serving = self._front.ready and self._front.models.find(name).refusal is None
        return (
            HealthCheckResponse.SERVING if serving and not self._stopping else HealthCheckResponse.NOT_SERVING
        )
