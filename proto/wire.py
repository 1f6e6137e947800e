"""What clients of the API rely on, as lines of text: numbers, names and types of all fields, the values of enums, the methods.

`wire.txt` is the table of all that there ever was. `python proto/generate.py` adds what is new, and refuses to go on if
something of the table has another name, number or type, or is gone without its number being reserved.
"""

from collections.abc import Iterable, Iterator

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

HEADER = (
    "# All that clients of the API may rely on: see wire.py, which checks it. A line goes only by hand, and only while\n"
    "# nobody can have used it.\n"
)


def lines_of(files: Iterable[FileDescriptorProto]) -> list[str]:
    """What the files define, sorted."""
    return sorted(line for file in files for line in _file_lines(file))


def broken(table: Iterable[str], files: Iterable[FileDescriptorProto]) -> list[str]:
    """The lines of the table that do not hold: neither are they as they were, nor is their number reserved."""
    files = list(files)
    defined, reserved = set(lines_of(files)), set(_reserved(files))
    return [line for line in table if line not in defined and tuple(line.split()[:2]) not in reserved]


def read_table(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def show_table(lines: Iterable[str]) -> str:
    return HEADER + "".join(f"{line}\n" for line in sorted(set(lines), key=_place))


def _place(line: str) -> tuple[str, int, str]:
    owner, number, *_ = line.split()
    return owner, int(number) if number.isdecimal() else -1, line


def _file_lines(file: FileDescriptorProto) -> Iterator[str]:
    for message in _messages(file.package, file.message_type):
        for field in message[1].field:
            yield f"{message[0]} {field.number} {field.name} {_type(field, message[1])}"
    for name, enum in _enums(file):
        for value in enum.value:
            yield f"{name} {value.number} {value.name}"
    for service in file.service:
        for method in service.method:
            yield (
                f"{file.package}.{service.name} {method.name} "
                f"{'stream ' * method.client_streaming}{method.input_type.lstrip('.')} -> "
                f"{'stream ' * method.server_streaming}{method.output_type.lstrip('.')}"
            )


def _messages(prefix: str, messages: Iterable[DescriptorProto]) -> Iterator[tuple[str, DescriptorProto]]:
    for message in messages:
        name = f"{prefix}.{message.name}"
        yield name, message
        yield from _messages(name, message.nested_type)


def _enums(file: FileDescriptorProto) -> Iterator[tuple[str, EnumDescriptorProto]]:
    for enum in file.enum_type:
        yield f"{file.package}.{enum.name}", enum
    for name, message in _messages(file.package, file.message_type):
        for enum in message.enum_type:
            yield f"{name}.{enum.name}", enum


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    kind = field.type_name.lstrip(".") or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    if field.proto3_optional:
        return f"optional {kind}"
    if field.HasField("oneof_index"):
        return f"{kind} in {message.oneof_decl[field.oneof_index].name}"
    return kind


def _reserved(files: Iterable[FileDescriptorProto]) -> Iterator[tuple[str, str]]:
    """Owner and number of everything that is reserved."""
    for file in files:
        for name, message in _messages(file.package, file.message_type):
            for part in message.reserved_range:
                for number in range(part.start, part.end):
                    yield name, str(number)
        for name, enum in _enums(file):
            for part in enum.reserved_range:
                for number in range(part.start, part.end + 1):
                    yield name, str(number)
