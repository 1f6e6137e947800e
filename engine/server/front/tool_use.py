"""What a request's tools make of it: what the template is given, what the output must obey, and how calls are
read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenmux.core.errors import InvalidRequest
from tokenmux.core.facts import ModelId
from tokenmux.models.text.encoder import TextFacts
from tokenmux.models.text.tool_formats import (
    TOOL_FORMATS,
    ToolFormat,
    ToolSchemas,
    schemas_of,
    tool_format_of,
)
from tokenmux.server.front.forced_calls import ForcedCall, forced_call
from tokenmux.server.front.generation import Ask, Chat, ToolChoice


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How calls are read: their form, the tools that were offered, and whether there may be several.
    `is_forced` is true if the output must be calls."""

    form: ToolFormat
    tools: ToolSchemas
    several: bool
    is_forced: bool


def tool_use_of(ask: Ask, model: ModelId, text: TextFacts) -> tuple[Ask, ToolUse | None]:
    """The question as its choice of tools makes it, and how calls are read in its output, if they are.

    Raises InvalidRequest if the model's template knows no tools, or asks for calls in an unknown form, and
    for tools and choices that do not fit each other.
    """
    choice = ask.tool_choice or ToolChoice()
    if not isinstance(ask.prompt, Chat) or choice.mode == "text":
        return ask, None
    tools = ask.prompt.tools
    if choice.mode == "none":
        return replace(ask, prompt=replace(ask.prompt, tools=())), None
    if not tools:
        if ask.tool_choice is not None:
            said = "tool_choice is for tools: send tools too, or leave it out"
            raise InvalidRequest(said, field="tool_choice")
        return ask, None
    _check_tools(tools)
    if not text.takes_tools:
        said = f"the chat template of {model} knows no tools: leave tools out, or use another model"
        raise InvalidRequest(said, field="tools")
    forced = _forced_call(ask, tools, choice)
    form = tool_format_of(text.template_for_tools) if forced is None else forced.form
    if form is None:
        known = ", ".join(form.name for form in TOOL_FORMATS)
        raise InvalidRequest(
            f"calls of {model} cannot be read: its chat template asks for none of the forms known here "
            f'({known}); force a call with tool_choice, use another model, or a tool_choice of "text", which '
            "leaves calls in the text",
            field="tools",
        )
    if forced is not None:
        ask = replace(ask, constraint=forced.constraint)
    if form.marks_are_special:
        ask = replace(ask, skip_special_tokens=False)
    return ask, ToolUse(form, schemas_of(tools), ask.several_calls, forced is not None)


def call_for_template(place: str, id: str, name: str, arguments: str) -> dict[str, object]:
    """A call that the assistant made, as templates take it: with its arguments as an object. Raises
    InvalidRequest, naming `place`, if they are not the text of one."""
    field = f"{place}.arguments"
    try:
        said = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{field} are not JSON: send the text of an object", field=field) from None
    if not isinstance(said, dict):
        raise InvalidRequest(f"{field} are not a JSON object: send the text of one", field=field)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": said}}


def _forced_call(ask: Ask, tools: Sequence[Mapping[str, Any]], choice: ToolChoice) -> ForcedCall | None:
    if choice.mode == "auto":
        return None
    if ask.constraint is not None:
        said = "tool_choice forces a call, and there is another form for the output: leave one of the two out"
        raise InvalidRequest(said, field="tool_choice")
    return forced_call(tools, choice.name or None, several=ask.several_calls)


def _check_tools(tools: Sequence[Mapping[str, Any]]) -> None:
    """Check that calls of these tools can be told apart, and read."""
    names: set[str] = set()
    for index, tool in enumerate(tools):
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        field = f"tools[{index}].function.name"
        if tool.get("type") != "function" or not isinstance(name, str) or not name:
            raise InvalidRequest(
                f'tools[{index}] is not a function with a name: write {{"type": "function", "function": '
                '{"name": ..., "parameters": {...}}}',
                field=f"tools[{index}]",
            )
        if name in names:
            raise InvalidRequest(f"{field}: {name} is there twice: give each tool its own name", field=field)
        names.add(name)
