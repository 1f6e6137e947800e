"""Writes docs/api.md, the reference of the gRPC API, from the .proto files and their comments.

`python proto/generate.py` does it too. A test holds the page against a fresh run.
"""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from generate import ROOT, described
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

PAGE = ROOT.parent / "docs" / "api.md"
PACKAGE_NAME = "tokenmux.v1"
FIRST = ("inference", "models", "pool", "planning")
"""Files in the order of the page; others follow."""
COLUMNS = 110
HEAD = """# The gRPC API

Generated from the `.proto` files by `python proto/generate.py`. What it is like to use it:
[for application developers](developers.md).
"""

ElementPath = tuple[int, ...]
SERVICE, MESSAGE, ENUM, SYNTAX = 6, 4, 5, 12
METHOD, FIELD, NESTED, NESTED_ENUM, VALUE = 2, 2, 3, 4, 2
"""Numbers of descriptor.proto, of which the place of a comment is made."""


def page() -> str:
    """The whole page."""
    files = sorted(
        (file for file in described() if file.package == PACKAGE_NAME),
        key=lambda file: (FIRST.index(_stem(file)) if _stem(file) in FIRST else len(FIRST), file.name),
    )
    return "\n".join([HEAD, *(line for file in files for line in _file(file))]).rstrip() + "\n"


def _stem(file: FileDescriptorProto) -> str:
    return Path(file.name).stem


def _file(file: FileDescriptorProto) -> Iterator[str]:
    comments = {
        tuple(place.path): place.leading_comments or "".join(place.leading_detached_comments)
        for place in file.source_code_info.location
    }
    yield f"## {file.name}\n"
    yield from _paragraphs(comments.get((SYNTAX,), ""))
    for index, service in enumerate(file.service):
        yield from _service(service, (SERVICE, index), comments)
    for index, message in enumerate(file.message_type):
        yield from _message(message, message.name, (MESSAGE, index), comments)
    for index, enum in enumerate(file.enum_type):
        yield from _enum(enum, enum.name, (ENUM, index), comments)


def _service(service: ServiceDescriptorProto, place: ElementPath, comments: dict[ElementPath, str]) -> Iterator[str]:
    yield f"### {service.name}\n"
    yield from _paragraphs(comments.get(place, ""))
    for index, method in enumerate(service.method):
        yield from _item(f"**{method.name}**({_flow(method)})", comments.get((*place, METHOD, index), ""))
    yield ""


def _flow(method: MethodDescriptorProto) -> str:
    asked = ("stream " if method.client_streaming else "") + _link(method.input_type)
    answered = ("stream " if method.server_streaming else "") + _link(method.output_type)
    return f"{asked}) returns ({answered}"


def _message(
    message: DescriptorProto, name: str, place: ElementPath, comments: dict[ElementPath, str]
) -> Iterator[str]:
    if message.options.map_entry:
        return
    yield f"### {name}\n"
    yield from _paragraphs(comments.get(place, ""))
    for index, field in enumerate(message.field):
        said = f"`{field.name}` {_type(field, message)} = {field.number}"
        if field.HasField("oneof_index") and not field.proto3_optional:
            said += f", one of `{message.oneof_decl[field.oneof_index].name}`"
        yield from _item(said, comments.get((*place, FIELD, index), ""))
    if message.field:
        yield ""
    for index, nested in enumerate(message.nested_type):
        yield from _message(nested, f"{name}.{nested.name}", (*place, NESTED, index), comments)
    for index, enum in enumerate(message.enum_type):
        yield from _enum(enum, f"{name}.{enum.name}", (*place, NESTED_ENUM, index), comments)


def _enum(
    enum: EnumDescriptorProto, name: str, place: ElementPath, comments: dict[ElementPath, str]
) -> Iterator[str]:
    yield f"### {name}\n"
    yield from _paragraphs(comments.get(place, ""))
    for index, value in enumerate(enum.value):
        yield from _item(f"`{value.name}` = {value.number}", comments.get((*place, VALUE, index), ""))
    yield ""


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    entry = next((one for one in message.nested_type if field.type_name.endswith(f".{message.name}.{one.name}")), None)
    if entry is not None and entry.options.map_entry:
        key, value = (_type(inner, entry) for inner in entry.field)
        return f"map of {key} to {value}"
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    said = _link(field.type_name) if field.type_name else kind
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {said}"
    return f"optional {said}" if field.proto3_optional else said


def _link(type_name: str) -> str:
    """A type of this package as a link to its place on the page."""
    name = type_name.removeprefix(f".{PACKAGE_NAME}.")
    if name.startswith("."):
        return name[1:]
    return f"[{name}](#{name.lower().replace('.', '')})"


def _item(head: str, comment: str) -> Iterator[str]:
    first, *rest = _blocks(comment) or [""]
    yield _filled(f"{head}. {first}" if first else head, "- ", "  ")
    for block in rest:
        yield ""
        yield textwrap.indent(block, "  ") if block.startswith("- ") else _filled(block, "  ", "  ")


def _paragraphs(comment: str) -> Iterator[str]:
    for block in _blocks(comment):
        yield (block if "\n- " in f"\n{block}" else _filled(block, "", "")) + "\n"


def _blocks(comment: str) -> list[str]:
    """The paragraphs of a comment, with lists as they are."""
    text = "\n".join(line.removeprefix(" ") for line in comment.strip("\n").split("\n")).strip()
    return [_escaped(block) for block in text.split("\n\n") if block.strip()]


def _escaped(text: str) -> str:
    """Text outside of backticks without what Markdown takes for HTML."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("<", "\\<") for part in parts)


def _filled(text: str, first: str, other: str) -> str:
    return textwrap.fill(
        " ".join(text.split()),
        COLUMNS,
        initial_indent=first,
        subsequent_indent=other,
        break_long_words=False,
        break_on_hyphens=False,
    )


def write_page() -> None:
    """Write docs/api.md."""
    PAGE.write_text(page())


if __name__ == "__main__":
    write_page()
