"""The .proto files keep the rules of `buf lint` that matter most, also where there is no buf: everything has
a comment, services and messages are named alike, and no two methods share a message."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto

from tests.server.proto_files import module_of

Path = tuple[int, ...]
"""Where something is in a file, as protoc counts: a field's number and an index, again and again."""


@pytest.fixture(scope="module")
def files() -> Sequence[FileDescriptorProto]:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is in the extra `test`")
    described: Sequence[FileDescriptorProto] = module_of("generate").described()
    assert len(described) > 3
    return described


def places(file: FileDescriptorProto) -> Iterator[tuple[Path, str]]:
    """Everything that needs a comment."""
    for i, message in enumerate(file.message_type):
        yield from message_places((4, i), message)
    for i, enum in enumerate(file.enum_type):
        yield from enum_places((5, i), enum)
    for i, service in enumerate(file.service):
        yield (6, i), service.name
        for j, method in enumerate(service.method):
            yield (6, i, 2, j), f"{service.name}.{method.name}"


def message_places(at: Path, message: DescriptorProto) -> Iterator[tuple[Path, str]]:
    if message.options.map_entry:
        return
    yield at, message.name
    for i, field in enumerate(message.field):
        yield (*at, 2, i), f"{message.name}.{field.name}"
    for i, oneof in enumerate(message.oneof_decl):
        if not oneof.name.startswith("_"):  # those are of `optional`
            yield (*at, 8, i), f"{message.name}.{oneof.name}"
    for i, nested in enumerate(message.nested_type):
        yield from message_places((*at, 3, i), nested)
    for i, enum in enumerate(message.enum_type):
        yield from enum_places((*at, 4, i), enum)


def enum_places(at: Path, enum: EnumDescriptorProto) -> Iterator[tuple[Path, str]]:
    yield at, enum.name
    for i, value in enumerate(enum.value):
        yield (*at, 2, i), f"{enum.name}.{value.name}"


def test_everything_has_a_comment(files: Sequence[FileDescriptorProto]) -> None:
    """They are the reference for whoever writes a client."""
    silent = []
    for file in files:
        said = {
            tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()
        }
        silent += [name for at, name in places(file) if at not in said]
    assert silent == []


def test_each_method_has_a_request_and_a_response_of_its_own_name(
    files: Sequence[FileDescriptorProto],
) -> None:
    for file in files:
        for service in file.service:
            assert service.name.endswith("Service")
            for method in service.method:
                assert method.input_type == f".{file.package}.{method.name}Request"
                assert method.output_type == f".{file.package}.{method.name}Response"


def test_the_first_value_of_an_enum_says_nothing(files: Sequence[FileDescriptorProto]) -> None:
    for enum in (enum for file in files for enum in file.enum_type):
        prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum.name).lstrip("_")
        assert (enum.value[0].name, enum.value[0].number) == (f"{prefix}_UNSPECIFIED", 0)
        assert all(value.name.startswith(f"{prefix}_") for value in enum.value)


def test_files_say_where_other_languages_put_them(files: Sequence[FileDescriptorProto]) -> None:
    options: list[Any] = [file.options for file in files if file.package == "tokenmux.v1"]
    assert {(one.go_package, one.java_package, one.java_multiple_files) for one in options} == {
        ("tokenmux/v1;tokenmuxv1", "tokenmux.v1", True)
    }
