"""The state of the pool as messages."""

from tokenmux.messages.reports import WorkerStatus
from tokenmux.scheduler.metrics.counters import INSTANCE_TABLE
from tokenmux.scheduler.metrics.histogram import BOUNDS_S
from tokenmux.server.front.pool_status import PoolSnapshot
from tokenmux.server.front.usage import Usage
from tokenmux.server.grpc_api.model_messages import model_message, service_message
from tokenmux.v1 import pool_pb2


def status_message(status: PoolSnapshot) -> pool_pb2.StatusResponse:
    """All of it; of 1,000 models this takes 20 ms."""
    instances = [] if status.worker is None else [_instance(status.worker)]
    return pool_pb2.StatusResponse(
        version=status.version,
        uptime_s=status.uptime_s,
        n_requests=status.n_requests,
        max_requests=status.max_requests,
        n_restarts=status.n_restarts,
        instances=instances,
        models=map(model_message, status.models),
        tenants=_tenants(status.usage),
        duration_bounds_s=BOUNDS_S,
        devices_saved=status.devices_saved,
        devices_saved_dedicated=status.devices_saved_dedicated,
    )


def _tenants(usage: Usage) -> list[pool_pb2.Tenant]:
    """Usage by tenant, sorted by name."""
    return [
        pool_pb2.Tenant(name=name, service=service_message(own))
        for name, own in sorted(usage.tenants.items())
    ]


def _instance(status: WorkerStatus) -> pool_pb2.Instance:
    return pool_pb2.Instance(
        at_s=status.at_s,
        device=status.device,
        arena_bytes=status.arena_bytes,
        weight_bytes=status.weight_bytes,
        kv_bytes=status.kv_bytes,
        host_cache_bytes=status.host_cache_bytes,
        host_cache_used_bytes=status.host_cache_used_bytes,
        host_kv_bytes=status.host_kv_bytes,
        host_kv_used_bytes=status.host_kv_used_bytes,
        running_model=status.running_model or "",
        n_models_used=status.n_models_used,
        **INSTANCE_TABLE.named(status.counts),
    )
