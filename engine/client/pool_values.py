"""What the server says of models, operations and the pool, as values."""

import grpc

from tokenmux.client.errors import CallFailed, ErrorDetails
from tokenmux.client.operator_values import (
    DeviceState,
    Durations,
    InstanceStatus,
    Model,
    ModelSizes,
    Operation,
    OperationState,
    PoolStatus,
    PoolTrace,
    RecordedRequest,
    Residency,
    Service,
    Tenant,
)
from tokenmux.client.value_making import enum_member, same_named
from tokenmux.v1 import models_pb2, operations_pb2, planning_pb2, pool_pb2


def model(message: models_pb2.Model) -> Model:
    plain = same_named(Model, message, besides={"residency", "instances", "service"})
    residency = enum_member(Residency, models_pb2.Residency.Name, message.residency, "RESIDENCY_")
    return Model(
        residency=residency, instances=tuple(message.instances), service=service(message.service), **plain
    )


def operation(message: operations_pb2.Operation) -> Operation:
    state = enum_member(OperationState, operations_pb2.OperationState.Name, message.state, "OPERATION_STATE_")
    return Operation(
        state=state,
        failure=message.error.reason,
        message=message.error.message,
        **same_named(Operation, message, besides={"state", "failure", "message"}),
    )


def completed(message: operations_pb2.Operation) -> None:
    """Raise CallFailed if an operation failed or was cancelled, as a call would have."""
    if not message.HasField("error"):
        return
    codes = {code.value[0]: code for code in grpc.StatusCode}
    code = codes.get(message.error.code, grpc.StatusCode.UNKNOWN)
    raise CallFailed(code, message.error.message, ErrorDetails(message.error.reason))


def instance(message: pool_pb2.Instance) -> InstanceStatus:
    return InstanceStatus(
        state=enum_member(DeviceState, pool_pb2.DeviceState.Name, message.state, "DEVICE_STATE_"),
        resident_models=tuple(message.resident_models),
        pinned_models=tuple(message.pinned_models),
        **same_named(InstanceStatus, message, besides={"state", "resident_models", "pinned_models"}),
    )


def service(message: models_pb2.ServiceTotals) -> Service:
    return Service(
        ttft=_durations(message.ttft),
        tpot=_durations(message.tpot),
        gaps=_durations(message.gaps),
        **same_named(Service, message, besides={"ttft", "tpot", "gaps"}),
    )


def _durations(message: models_pb2.Durations) -> Durations:
    return Durations(tuple(message.counts), message.total_s)


def sizes(message: planning_pb2.ModelSizes) -> ModelSizes:
    return ModelSizes(**same_named(ModelSizes, message))


def recorded(message: planning_pb2.RecordedRequest) -> RecordedRequest:
    plain = same_named(RecordedRequest, message, besides={"hash_ids"})
    return RecordedRequest(hash_ids=tuple(message.hash_ids), **plain)


def pool_trace(message: pool_pb2.GetTraceResponse) -> PoolTrace:
    return PoolTrace(**same_named(PoolTrace, message))


def tenant(message: pool_pb2.Tenant) -> Tenant:
    return Tenant(message.name, service(message.service))


def pool_status(message: pool_pb2.PoolStatus) -> PoolStatus:
    return pool_status_of(
        message,
        tuple(map(model, message.models)),
        tuple(map(tenant, message.tenants)),
        tuple(map(instance, message.instances)),
    )


def pool_status_of(
    message: pool_pb2.PoolStatus,
    models: tuple[Model, ...],
    tenants: tuple[Tenant, ...],
    instances: tuple[InstanceStatus, ...],
) -> PoolStatus:
    """The figures of a message, with these models, tenants and instances."""
    return PoolStatus(
        instances=instances,
        models=models,
        tenants=tenants,
        duration_bounds_s=tuple(message.duration_bounds_s),
        **same_named(PoolStatus, message, besides={"instances", "models", "tenants", "duration_bounds_s"}),
    )
