"""Calls that a choice of tools forces: the output is JSON that obeys a schema, whatever the model's own form.

a name      the arguments of that tool
required    [{"name": ..., "arguments": {...}}, ...], of any of the tools
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmux.core.errors import InvalidRequest
from tokenmux.models.text.tool_formats import REQUIRED, ToolFormat, named_format
from tokenmux.server.front.generation import Constraint

Tool = Mapping[str, Any]
_DEFINITIONS = ("$defs", "definitions")


@dataclass(frozen=True, slots=True)
class ForcedCall:
    """What the output must obey, and how it is read."""

    constraint: Constraint
    form: ToolFormat


def forced_call(tools: Sequence[Tool], name: str | None, *, several: bool) -> ForcedCall:
    """The call of the tool with a name; without one, of any of the tools.

    Raises InvalidRequest if there is no such tool, or if schemas cannot stand beside each other.
    """
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    if name is None:
        return ForcedCall(_constraint(_any_call(schemas, several=several)), REQUIRED)
    if name not in schemas:
        said = f"tool_choice names {name[:64]!r}, which is none of the tools: {', '.join(schemas)[:500]}"
        raise InvalidRequest(said, field="tool_choice")
    return ForcedCall(_constraint(_object(schemas[name])), named_format(name))


def _constraint(schema: Mapping[str, Any]) -> Constraint:
    return Constraint("json_schema", json.dumps(schema, ensure_ascii=False))


def _object(schema: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The schema of a tool's arguments, which are an object."""
    return {"type": "object", **(schema or {})}


def _any_call(schemas: Mapping[str, Mapping[str, Any] | None], *, several: bool) -> dict[str, Any]:
    """The schema of a list of calls. References of a tool's schema begin at its root, so its definitions are
    moved to the root of the whole."""
    kinds, shared = [], dict[str, dict[str, Any]]()
    for name, schema in schemas.items():
        own = dict(_object(schema))
        for key in _DEFINITIONS:
            if not isinstance(own.get(key), dict):
                continue
            for title, definition in own.pop(key).items():
                if shared.setdefault(key, {}).setdefault(title, definition) != definition:
                    raise InvalidRequest(
                        f"tools define {title[:64]!r} in different ways, so that no call can be required: "
                        "give each definition its own name",
                        field="tools",
                    )
        kinds.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": own},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    limit = {} if several else {"maxItems": 1}
    return {"type": "array", "minItems": 1, **limit, "items": {"anyOf": kinds}, **shared}
