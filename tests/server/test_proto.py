"""The committed gRPC code is what the .proto files say, and its import path is the protobuf package."""

import importlib
from pathlib import Path

import pytest

from tests.server.proto_files import PACKAGE, module_of

FILES = tuple(path.stem for path in PACKAGE.glob("*.proto"))


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is in the extra `test`")
    module_of("generate").generate(tmp_path)
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "tokenmux" / "v1").iterdir()}
    committed = {path.name: path.read_bytes() for path in PACKAGE.glob("*_pb2*.py*")}
    assert sorted(fresh) == sorted(committed)
    assert [name for name in fresh if fresh[name] != committed[name]] == [], "run `python proto/generate.py`"


def test_the_reference_is_up_to_date() -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is in the extra `test`")
    reference = module_of("reference")
    assert reference.PAGE.read_text() == reference.page(), "run `python proto/generate.py`"


@pytest.mark.parametrize("name", FILES)
def test_import_path_equals_package(name: str) -> None:
    module = importlib.import_module(f"tokenmux.v1.{name}_pb2")
    assert module.DESCRIPTOR.package == "tokenmux.v1"
    assert module.DESCRIPTOR.name == f"tokenmux/v1/{name}.proto"


def test_enum_values_match_the_values_inside() -> None:
    """The servicers translate by name; a value added on one side only would fail at run time."""
    from tokenmux.core.phases import DeviceState, RequestPhase, Residency
    from tokenmux.v1 import inference_pb2, models_pb2, pool_pb2

    phases = {
        name.removeprefix("REQUEST_PHASE_") for name in inference_pb2.RequestPhase.DESCRIPTOR.values_by_name
    }
    residencies = {name.removeprefix("RESIDENCY_") for name in models_pb2.Residency.DESCRIPTOR.values_by_name}
    states = {name.removeprefix("DEVICE_STATE_") for name in pool_pb2.DeviceState.DESCRIPTOR.values_by_name}
    assert states == {state.name for state in DeviceState} | {"UNSPECIFIED"}
    assert phases == {phase.name for phase in RequestPhase} | {"UNSPECIFIED"}
    assert residencies == {residency.name for residency in Residency} | {"UNSPECIFIED"}


def test_kinds_of_devices_match_those_of_the_configuration() -> None:
    from typing import get_args

    from tokenmux.core.memory_budgets import DeviceKind
    from tokenmux.messages.setups import PagedKv
    from tokenmux.server.grpc_api.pool_messages import KINDS, PAGINGS
    from tokenmux.v1 import pool_pb2

    assert set(KINDS) == set(pool_pb2.DeviceKind.values())
    assert set(KINDS.values()) == {*get_args(DeviceKind), None}
    assert set(PAGINGS) == set(pool_pb2.PagedKv.values())
    assert set(PAGINGS.values()) == {*get_args(PagedKv), None}
