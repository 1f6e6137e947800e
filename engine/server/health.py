"""Keeps the standard health service (grpc.health.v1) in step with the front.

Names: "" and "tokenmux.v1.Inference" are SERVING while requests are accepted, "models/NAME" while requests for that model
are. A model that was removed becomes SERVICE_UNKNOWN, as the protocol has it for names that may come back.
"""

from typing import Protocol

from grpc_health.v1 import health_pb2

from tokenmux.engine.server.front import Front

OVERALL = ("", "tokenmux.v1.Inference")


def model_service(name: str) -> str:
    """The name under which a model's health is asked for."""
    return f"models/{name}"


class HealthServicer(Protocol):
    """What is used of grpc_health's asyncio servicer, which has no type stubs."""

    async def set(self, service: str, status: health_pb2.HealthCheckResponse.ServingStatus) -> None: ...

    async def enter_graceful_shutdown(self) -> None: ...


async def keep_health(front: Front, servicer: HealthServicer) -> None:
    """Run until cancelled."""
    known: set[str] = set()
    version = front.changes.version
    while True:
        current = {
            model_service(served.facts.id): front.ready and served.refusal is None for served in front.roster
        }
        current |= dict.fromkeys(OVERALL, front.ready)
        for name in known - current.keys():
            await servicer.set(name, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        for name, serving in current.items():
            status = health_pb2.HealthCheckResponse
            await servicer.set(name, status.SERVING if serving else status.NOT_SERVING)
        known |= current.keys()
        version = await front.changes.after(version)
