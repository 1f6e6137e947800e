"""Any message that a client can encode is served or refused with a reason, and the next one is served as
if it had not been."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.harness import ServerThread, serving
from tests.server.sample_reports import node_status, node_use
from tests.server.scripted_models import FakeEntry, facts
from tokenmux.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    planning_pb2,
    planning_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
)

Code = grpc.StatusCode
OWN = {
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.FAILED_PRECONDITION,
    Code.ALREADY_EXISTS,
    Code.RESOURCE_EXHAUSTED,
    Code.DEADLINE_EXCEEDED,  # ours: a watch has no end of its own
}
INTS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
EXTREME = st.sampled_from([0.0, -0.0, 5e-324, 1e-45, 1e-38, 1e38, 1e308, float("inf"), float("nan"), 1.0])
TEXTS = st.sampled_from(["letters", "", "x" * 200, "(pool)", "\x00", "[/b]"]) | st.text(max_size=30)


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_MESSAGE:
            assert field.message_type is not None
            if field.message_type.GetOptions().map_entry:
                key, value = field.message_type.fields
                return st.dictionaries(values(key), values(value), max_size=70)
            one: st.SearchStrategy[Any] = contents(field.message_type)
        case FieldDescriptor.CPPTYPE_FLOAT:
            one = st.floats(width=32) | EXTREME.map(lambda x: x if abs(x) < 1e39 else float("inf"))
        case FieldDescriptor.CPPTYPE_DOUBLE:
            one = st.floats() | EXTREME
        case FieldDescriptor.CPPTYPE_BOOL:
            one = st.booleans()
        case FieldDescriptor.CPPTYPE_STRING:
            one = TEXTS
        case FieldDescriptor.CPPTYPE_ENUM:
            one = st.integers(-2, 5) | st.integers(-(2**31), 2**31 - 1)
        case kind:
            low, high = INTS[kind]
            one = st.integers(low, high) | st.integers(max(low, -2), 100)
    return st.lists(one, max_size=70) if field.is_repeated else one


def contents(descriptor: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Any subset of a message's fields, with any values; of a oneof, which of several given ones wins is
    protobuf's affair."""
    return st.fixed_dictionaries({}, optional={field.name: values(field) for field in descriptor.fields})


STUBS = {
    inference_pb2: inference_pb2_grpc.InferenceServiceStub,
    models_pb2: models_pb2_grpc.ModelServiceStub,
    operations_pb2: operations_pb2_grpc.OperationServiceStub,
    pool_pb2: pool_pb2_grpc.PoolServiceStub,
    planning_pb2: planning_pb2_grpc.PlanningServiceStub,
    health_pb2: health_pb2_grpc.HealthStub,
}
METHODS = [
    (module, method.name)
    for module in STUBS
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with ServerThread(lambda: serving(FakeEntry(facts("letters")), FakeEntry(facts("odd")))) as running:
        running.served.hub.refuses["device"] = "only a node knows"
        running.do(running.post(node_status("letters", "odd")))
        running.do(running.post(node_use("letters")))
        yield running


@pytest.fixture(scope="module")
def channel(server: ServerThread) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.served.target) as channel:
        yield channel


@pytest.mark.parametrize(
    "n_messages", [40, pytest.param(600, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])]
)
@pytest.mark.parametrize(("module", "name"), METHODS)
def test_any_message_is_served_or_refused_with_a_reason(
    module: Any, name: str, n_messages: int, server: ServerThread, channel: grpc.Channel
) -> None:
    service = next(iter(module.DESCRIPTOR.services_by_name.values()))
    method = service.methods_by_name[name]
    stub = STUBS[module](channel)
    kind = getattr(module, method.input_type.name)

    @given(contents(method.input_type))
    @settings(
        max_examples=n_messages // 5 if "Watch" in name else n_messages,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    def call(fields: dict[str, Any]) -> None:
        refusal = None
        try:
            answer = getattr(stub, name)(kind(**fields), timeout=0.3 if "Watch" in name else 60)
            if method.server_streaming:
                list(answer)
        except grpc.RpcError as error:
            refusal = (error.code(), error.details())
        if refusal is not None:
            assert refusal[0] in OWN, refusal
            assert 0 < len(refusal[1]) <= 2048
        check = inference_pb2.GenerateRequest(
            model="odd", token_ids={"ids": [97]}, stopping={"max_tokens": 1}
        )
        assert (
            inference_pb2_grpc.InferenceServiceStub(channel).Generate(check, timeout=60).choices[0].text
            == "b"
        )

    call()
    assert server.served.front.n_live == 0
