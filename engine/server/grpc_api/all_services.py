"""Every gRPC service of ours, and how a server gets them."""

import grpc

from tokenmux.server.front.service import FrontService
from tokenmux.server.grpc_api.inference_service import InferenceService
from tokenmux.server.grpc_api.model_service import ModelService
from tokenmux.server.grpc_api.open_inference_service import OpenInferenceService
from tokenmux.server.grpc_api.operation_service import OperationService
from tokenmux.server.grpc_api.planning_service import PlanningService
from tokenmux.server.grpc_api.pool_service import PoolService
from tokenmux.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    open_inference_pb2,
    operations_pb2,
    operations_pb2_grpc,
    planning_pb2,
    planning_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
)

_FILES = (inference_pb2, models_pb2, operations_pb2, pool_pb2, planning_pb2, open_inference_pb2)


def add_services(server: grpc.aio.Server, front: FrontService) -> list[str]:
    """Let the server answer for all of them. Returns their full names."""
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceService(front), server)  # type: ignore[no-untyped-call]
    models_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(front), server)  # type: ignore[no-untyped-call]
    operations_pb2_grpc.add_OperationServiceServicer_to_server(OperationService(front), server)  # type: ignore[no-untyped-call]
    pool_pb2_grpc.add_PoolServiceServicer_to_server(PoolService(front), server)  # type: ignore[no-untyped-call]
    planning_pb2_grpc.add_PlanningServiceServicer_to_server(PlanningService(front), server)  # type: ignore[no-untyped-call]
    server.add_generic_rpc_handlers((OpenInferenceService(front).handler(),))
    return [service.full_name for file in _FILES for service in file.DESCRIPTOR.services_by_name.values()]
