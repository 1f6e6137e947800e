"""The state of the pool as messages, and messages about devices as values."""

from tokenmux.core.errors import InvalidRequest
from tokenmux.core.memory_budgets import DeviceKind
from tokenmux.messages.reports import DeviceStatus
from tokenmux.messages.setups import PagedKv
from tokenmux.scheduler.metrics.counter_table import Row
from tokenmux.scheduler.metrics.counters import INSTANCE_TABLE
from tokenmux.scheduler.metrics.histogram import BOUNDS_S
from tokenmux.server.front.device_source import WantedDevice
from tokenmux.server.front.pool_status import PoolSnapshot
from tokenmux.server.grpc_api.model_messages import service_message
from tokenmux.v1 import pool_pb2

KINDS: dict[pool_pb2.DeviceKind, DeviceKind | None] = {
    pool_pb2.DEVICE_KIND_UNSPECIFIED: None,
    pool_pb2.DEVICE_KIND_CPU: "cpu",
    pool_pb2.DEVICE_KIND_CUDA: "cuda",
}
PAGINGS: dict[pool_pb2.PagedKv, PagedKv | None] = {
    pool_pb2.PAGED_KV_UNSPECIFIED: None,
    pool_pb2.PAGED_KV_EXACT: "exact",
    pool_pb2.PAGED_KV_INT8: "int8",
}


def summary_message(status: PoolSnapshot) -> pool_pb2.PoolStatus:
    """The pool's own figures, without its devices, models and tenants."""
    message = pool_pb2.PoolStatus(
        version=status.version,
        uptime_s=status.uptime_s,
        n_requests=status.n_requests,
        max_requests=status.max_requests,
        n_restarts=status.n_restarts,
        duration_bounds_s=BOUNDS_S,
        devices_saved=status.devices_saved,
        devices_saved_dedicated=status.devices_saved_dedicated,
    )
    node = status.node
    if node is not None:
        message.MergeFrom(
            pool_pb2.PoolStatus(
                at_s=node.at_s,
                host_cache_bytes=node.host_cache_bytes,
                host_cache_used_bytes=node.host_cache_used_bytes,
                host_kv_bytes=node.host_kv_bytes,
                host_kv_used_bytes=node.host_kv_used_bytes,
                work_s=node.work_s,
                model_work_s=node.model_work_s,
                n_models_used=node.n_models_used,
            )
        )
    return message


def wanted_device(request: pool_pb2.AddDeviceRequest) -> WantedDevice:
    """The device that is asked for. Raises InvalidRequest for a kind or paging that there is not."""
    if request.kind not in KINDS or request.paged_kv not in PAGINGS:
        raise InvalidRequest(
            f"kind {request.kind}, paged_kv {request.paged_kv}: this server knows DEVICE_KIND_CPU and "
            "DEVICE_KIND_CUDA, PAGED_KV_EXACT and PAGED_KV_INT8"
        )
    return WantedDevice(KINDS[request.kind], request.arena_bytes, request.gpu, PAGINGS[request.paged_kv])


def named_instance(request: pool_pb2.DrainDeviceRequest | pool_pb2.RemoveDeviceRequest) -> int:
    """The device that a request names. Raises InvalidRequest if it names none: 0 would be a device."""
    if not request.HasField("instance"):
        raise InvalidRequest("instance: say which device is meant; `pool status` shows their numbers")
    return request.instance


def tenant_message(name: str, row: Row) -> pool_pb2.Tenant:
    return pool_pb2.Tenant(name=name, service=service_message(row))


def instance_message(status: DeviceStatus) -> pool_pb2.Instance:
    return pool_pb2.Instance(
        id=status.instance,
        device=status.device,
        state=f"DEVICE_STATE_{status.state.name}",
        fault=status.fault,
        n_deaths=status.n_deaths,
        arena_bytes=status.arena_bytes,
        weight_bytes=status.weight_bytes,
        kv_bytes=status.kv_bytes,
        running_model=status.running_model or "",
        loading_model=status.loading_model or "",
        resident_models=status.resident,
        pinned_models=status.pinned,
        n_requests=status.n_requests,
        **INSTANCE_TABLE.named(status.counts),
    )
