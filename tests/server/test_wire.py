"""What clients of the API rely on stays: `proto/wire.txt` has every field that there was, and the .proto
files must still have it, or have reserved its number."""

import importlib
from collections.abc import Callable, Iterable

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from tests.server.proto_files import PACKAGE, PROTO, module_of
from tokenmux.v1 import inference_pb2

wire = module_of("wire")


def in_use() -> list[FileDescriptorProto]:
    """The .proto files as Python has them, without a compiler."""
    files = []
    for path in PACKAGE.glob("*_pb2.py"):
        file = FileDescriptorProto()
        importlib.import_module(f"tokenmux.v1.{path.stem}").DESCRIPTOR.CopyToProto(file)
        files.append(file)
    return files


def test_nothing_of_the_table_is_gone_or_different_and_all_is_in_it() -> None:
    table = wire.read_table((PROTO / "wire.txt").read_text())
    files = in_use()
    assert wire.broken(table, files) == [], (
        "reserve the number of what is gone, and give what is new a new one"
    )
    missing = set(wire.lines_of(files)) - set(table)
    assert not missing, "run `python proto/generate.py`"


def test_what_is_written_can_be_read() -> None:
    lines = wire.lines_of(in_use())
    assert len(lines) > 250
    assert sorted(wire.read_table(wire.show_table(lines))) == sorted(lines)


def inference() -> FileDescriptorProto:
    file = FileDescriptorProto()
    inference_pb2.DESCRIPTOR.CopyToProto(file)
    return file


def field(file: FileDescriptorProto, message: str, name: str) -> FieldDescriptorProto:
    (owner,) = (one for one in file.message_type if one.name == message)
    (found,) = (one for one in owner.field if one.name == name)
    return found


def renumber(file: FileDescriptorProto) -> None:
    field(file, "Sampling", "top_k").number = 77


def retype(file: FileDescriptorProto) -> None:
    field(file, "Sampling", "top_k").type = FieldDescriptorProto.TYPE_INT64


def rename(file: FileDescriptorProto) -> None:
    field(file, "Sampling", "top_k").name = "most_likely"


def make_required(file: FileDescriptorProto) -> None:
    field(file, "Sampling", "top_k").proto3_optional = False


def remove(file: FileDescriptorProto) -> None:
    (sampling,) = (one for one in file.message_type if one.name == "Sampling")
    sampling.field.remove(field(file, "Sampling", "top_k"))


@pytest.mark.parametrize("change", [renumber, retype, rename, make_required, remove])
def test_a_change_that_would_break_a_client_is_found(change: Callable[[FileDescriptorProto], None]) -> None:
    table, file = wire.lines_of([inference()]), inference()
    assert wire.broken(table, [file]) == []
    change(file)
    assert wire.broken(table, [file]) == ["tokenmux.v1.Sampling 2 top_k optional int32"]


def test_a_field_may_go_if_its_number_is_reserved_and_a_planned_one_may_come() -> None:
    table, file = wire.lines_of([inference()]), inference()
    remove(file)
    (sampling,) = (one for one in file.message_type if one.name == "Sampling")
    sampling.reserved_range.add(start=2, end=3)
    sampling.field.add(name="typical_p", number=11, type=FieldDescriptorProto.TYPE_FLOAT)
    assert wire.broken(table, [file]) == []


def test_values_and_methods_are_held_as_well() -> None:
    table, file = wire.lines_of([inference()]), inference()
    file.enum_type[0].value[1].number = 99
    file.service[0].method[0].server_streaming = True
    broken: Iterable[str] = wire.broken(table, [file])
    assert [line.split()[:2] for line in broken] == [
        ["tokenmux.v1.InferenceService", "Generate"],
        [f"tokenmux.v1.{file.enum_type[0].name}", "1"],
    ]
