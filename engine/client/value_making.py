"""Values of messages, field by field."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any


def same_named(kind: Any, message: Any, besides: Collection[str] = ()) -> dict[str, Any]:
    """The scalar fields of a message for which a dataclass has a field of the same name."""
    return {field.name: getattr(message, field.name) for field in fields(kind) if field.name not in besides}


def enum_member(kind: Any, name_of: Any, value: int, prefix: str) -> Any:
    """The member of our enum for a protobuf value, or UNKNOWN."""
    try:
        name = name_of(value).removeprefix(prefix)
    except ValueError:
        return kind.UNKNOWN
    return kind.__members__.get(name, kind.UNKNOWN)
