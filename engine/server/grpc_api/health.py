"""The standard health service (grpc.health.v1), answered from the front's present state.

Names: "" and "tokenmux.v1.InferenceService" are SERVING while requests are accepted, "models/NAME" while
requests for that model are. A model that is not served is NOT_FOUND to `Check` and SERVICE_UNKNOWN to
`Watch`, which the protocol uses for names that may appear later.

grpc_health's own asyncio servicer writes to watchers under a lock that setting a status needs: one client
that reads nothing stops health for all. Here a watcher waits only for its own connection.
"""

from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckResponse

from tokenmux.core.errors import NotFound
from tokenmux.server.front.changes import Watchers
from tokenmux.server.front.service import FrontService
from tokenmux.server.grpc_api.grpc_types import Context
from tokenmux.server.grpc_api.status import answering

OVERALL = ("", "tokenmux.v1.InferenceService")
MODELS = "models/"
MAX_HEALTH_WATCHERS = 1000


def model_service(name: str) -> str:
    """The health service's name for a model."""
    return MODELS + name


class HealthService:
    """The health service; see the module."""

    def __init__(self, front: FrontService) -> None:
        self._front = front
        self._watchers = Watchers("health", MAX_HEALTH_WATCHERS, "check it from time to time instead")
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
        names = [*OVERALL, *map(model_service, self._front.model_names())]
        return health_pb2.HealthListResponse(
            statuses={name: HealthCheckResponse(status=self._status(name)) for name in names}
        )

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        async with answering(context):
            with self._watchers.place():
                await self._watch(request.service, context)

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
            if not self._front.knows_model(name) or not service.startswith(MODELS):
                return HealthCheckResponse.SERVICE_UNKNOWN
            serving = self._front.model_ready(name)
        return (
            HealthCheckResponse.SERVING if serving and not self._stopping else HealthCheckResponse.NOT_SERVING
        )
