"""The forms in which models write calls of tools, and which of them a chat template asks for.

    hermes        <tool_call>{"name": ..., "arguments": {...}}</tool_call>        Hermes, Qwen 2.5 and 3
    qwen-coder    <tool_call><function=NAME><parameter=KEY>VALUE</parameter>...   Qwen 3 Coder
    glm           <tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE...        GLM 4.5
    mistral       [TOOL_CALLS] [{...}, ...], or [TOOL_CALLS]NAME[ARGS]{...}       Mistral
    deepseek      <｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}                     DeepSeek V3
    bars          <|tool_call|>[{...}, ...]                                       Granite 3, Phi 4
    llama         {"name": ..., "parameters": {...}} from the beginning           Llama 3

transformers has a parser of responses, driven by a `response_template` of the tokenizer. It is not used:
hardly a checkpoint has one yet, its patterns are the author's and would run on the event loop, and importing
it takes as long as transformers.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmux.models.text.call_shapes import (
    DEEPSEEK_CALL,
    JSON_CALL,
    NAMED_CALL,
    CallShape,
    arguments_alone,
)

ToolSchemas = Mapping[str, Mapping[str, object]]
"""The offered tools by name, each with the schemas of its parameters by name."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool: its arguments are the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A form of calls.

    A call begins with `opening` and ends with `closing`, with the next opening, or with the output. Without
    an opening, an output that begins with `begins` is a call as a whole. `read` returns the calls between the
    two, or None if the text is something else. A call that is written in one of `shapes` is followed while it
    is written; without any, calls are read when they have ended. If the `marks_are_special` tokens, they are
    seen only in output that shows special tokens. `id_chars` is the length of ids that the template takes.
    """

    name: str
    opening: str
    closing: str
    read: Callable[[str, ToolSchemas], list[ToolCall] | None]
    shapes: tuple[CallShape, ...] = ()
    marks_are_special: bool = False
    id_chars: int | None = None
    begins: str = "{"


def tool_format_of(template: str | None) -> ToolFormat | None:
    """The form that a chat template asks for; None if it is not one of those known here."""
    found = (form for sign, form in _SIGNS if template is not None and sign in template)
    return next(found, None)


def schemas_of(tools: Sequence[Mapping[str, Any]]) -> ToolSchemas:
    """The schemas in tools of the form `{"type": "function", "function": {"name": ..., ...}}`."""
    found: dict[str, Mapping[str, object]] = {}
    for tool in tools:
        parameters = tool["function"].get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        found[tool["function"]["name"]] = properties if isinstance(properties, dict) else {}
    return found


def _read_json(text: str, tools: ToolSchemas) -> list[ToolCall] | None:
    """Read objects with a name and arguments: one, a list, or several after each other."""
    found: list[ToolCall] = []
    for value in _json_values(text):
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, dict):
                return None
            arguments = item.get("arguments", item.get("parameters", {}))
            if isinstance(arguments, str):  # some models write JSON within JSON
                arguments = next(iter(_json_values(arguments or "{}")), None)
            call = _call(item.get("name"), arguments, tools)
            if call is None:
                return None
            found.append(call)
    return found or None


def _json_values(text: str) -> list[Any]:
    """The JSON values in a text, with spaces or semicolons between; none if anything else is there."""
    found, at = [], _skip(text, 0)
    try:
        while at < len(text):
            value, at = _DECODER.raw_decode(text, at)
            found.append(value)
            at = _skip(text, at)
    except (ValueError, RecursionError):
        return []
    return found


def _skip(text: str, at: int) -> int:
    while at < len(text) and (text[at].isspace() or text[at] == ";"):
        at += 1
    return at


def _read_named(text: str, tools: ToolSchemas) -> list[ToolCall] | None:
    """Read a name with the object of its arguments behind it, or JSON as other formats have it."""
    head, brace, rest = text.partition("{")
    name = head.partition("[ARGS]")[0].partition("[CALL_ID]")[0].strip()
    if not name or name.startswith("["):
        return _read_json(text, tools)
    values = _json_values(brace + rest)
    call = _call(name, values[0], tools) if len(values) == 1 else None
    return None if call is None else [call]


def _read_deepseek(text: str, tools: ToolSchemas) -> list[ToolCall] | None:
    found = []
    for part in text.split("<｜tool▁call▁begin｜>")[1:]:
        kind, _, rest = part.partition("<｜tool▁call▁end｜>")[0].partition("<｜tool▁sep｜>")
        if kind.strip() == "function":
            name, _, body = rest.partition("\n")
            arguments = body.strip().removeprefix("```json").removesuffix("```")
        else:
            name, arguments = kind, rest
        values = _json_values(arguments)
        call = _call(name.strip(), values[0], tools) if len(values) == 1 else None
        if call is None:
            return None
        found.append(call)
    return found or None


def _read_qwen_coder(text: str, tools: ToolSchemas) -> list[ToolCall] | None:
    head, _, body = text.strip().removeprefix("<function=").partition(">")
    arguments = {}
    for part in body.partition("</function>")[0].split("<parameter=")[1:]:
        name, _, value = part.partition(">")
        value = value.rpartition("</parameter>")[0] or value
        arguments[name.strip()] = value.removeprefix("\n").removesuffix("\n")
    return _read_texts(head.strip(), arguments, tools)


def _read_glm(text: str, tools: ToolSchemas) -> list[ToolCall] | None:
    head, *parts = text.split("<arg_key>")
    arguments = {}
    for part in parts:
        name, _, rest = part.partition("</arg_key>")
        value = rest.partition("<arg_value>")[2]
        arguments[name.strip()] = (value.rpartition("</arg_value>")[0] or value).strip("\n")
    return _read_texts(head.strip(), arguments, tools)


def _read_texts(name: str, values: Mapping[str, str], tools: ToolSchemas) -> list[ToolCall] | None:
    """Make a call of values that are written as plain text: those that are not strings are JSON."""
    schemas = tools.get(name, {})
    call = _call(name, {key: _typed(value, schemas.get(key)) for key, value in values.items()}, tools)
    return None if call is None else [call]


def _typed(value: str, schema: object) -> object:
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind == "string":
        return value
    values = _json_values(value)
    return values[0] if len(values) == 1 else value


def _call(name: object, arguments: object, tools: ToolSchemas) -> ToolCall | None:
    if not isinstance(name, str) or name not in tools or not isinstance(arguments, dict):
        return None
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


_DECODER = json.JSONDecoder()

HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>", _read_json, (JSON_CALL,))
QWEN_CODER = ToolFormat("qwen-coder", "<tool_call>", "</tool_call>", _read_qwen_coder)
GLM = ToolFormat("glm", "<tool_call>", "</tool_call>", _read_glm)
MISTRAL = ToolFormat(
    "mistral",
    "[TOOL_CALLS]",
    "",
    _read_named,
    (JSON_CALL, NAMED_CALL),
    marks_are_special=True,
    id_chars=9,
)
DEEPSEEK = ToolFormat(
    "deepseek",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    _read_deepseek,
    (DEEPSEEK_CALL,),
    marks_are_special=True,
)
BARS = ToolFormat("bars", "<|tool_call|>", "<|/tool_call|>", _read_json, (JSON_CALL,), marks_are_special=True)
LLAMA = ToolFormat("llama", "", "", _read_json, (JSON_CALL,))

REQUIRED = ToolFormat("required", "", "", _read_json, (JSON_CALL,), begins="[")
"""What forced output has the form of: a list of calls."""


def named_format(name: str) -> ToolFormat:
    """The form of output that is the arguments of one tool."""
    return ToolFormat(
        "named", "", "", lambda text, tools: _read_named(name + text, tools), (arguments_alone(name),)
    )


TOOL_FORMATS: Sequence[ToolFormat] = (HERMES, QWEN_CODER, GLM, MISTRAL, DEEPSEEK, BARS, LLAMA)

_SIGNS: Sequence[tuple[str, ToolFormat]] = (
    ("<function=", QWEN_CODER),
    ("<arg_key>", GLM),
    ("<tool_call>", HERMES),
    ("[TOOL_CALLS]", MISTRAL),
    ("<｜tool▁calls▁begin｜>", DEEPSEEK),
    ("<|tool_call|>", BARS),
    ('{"name": function name, "parameters"', LLAMA),
)
"""Texts in a chat template that tell the form, the more special ones first."""
