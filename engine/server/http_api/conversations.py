"""Messages and tools of `/v1/chat/completions`, and the conversation that the model's template is given."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from tokenmux.core.errors import InvalidRequest
from tokenmux.server.front.generation import Chat, ChatMessage, ToolChoice, ToolMode
from tokenmux.server.front.request_rules import MAX_CALLS
from tokenmux.server.front.tool_use import call_for_template
from tokenmux.server.http_api.body_fields import Lenient, ListOf, at_most

MAX_PARTS = 4096
"""Parts of the content of one message."""
NAME_PATTERN = "^[a-zA-Z0-9_.-]{1,64}$"


class ContentPart(Lenient):
    """A part of a message's content. `type` must be `text`."""

    type: str
    text: str | None = None


class CalledFunction(Lenient):
    """The function of a call. `arguments` are the text of a JSON object."""

    name: str
    arguments: str | None = None


class CallBody(Lenient):
    """A call that the assistant made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class MessageBody(Lenient):
    """A message of a conversation. Content parts are joined by a line break.

    A message of the assistant may have `tool_calls` and no content; their results are messages of the role
    `tool`.
    """

    role: str
    content: Annotated[
        str | ListOf[ContentPart] | None, at_most(MAX_PARTS, "parts in a message", "messages")
    ] = None
    tool_calls: Annotated[ListOf[CallBody] | None, at_most(MAX_CALLS, "calls in a message", "messages")] = (
        None
    )
    tool_call_id: str | None = None
    name: str | None = None


class FunctionBody(Lenient):
    """A function that the model may call. `parameters` are a JSON schema."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolBody(Lenient):
    """A tool."""

    type: Literal["function"]
    function: FunctionBody


class NamedFunction(Lenient):
    """The name of a function."""

    name: str


class NamedTool(Lenient):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


def conversation_of(messages: Sequence[MessageBody]) -> Chat:
    """The conversation. Raises InvalidRequest for content other than text."""
    return Chat(tuple(_message(f"messages[{index}]", message) for index, message in enumerate(messages)))


def _message(place: str, message: MessageBody) -> ChatMessage:
    # Templates of open models know no developers; OpenAI's own models took system for it.
    role = "system" if message.role == "developer" else message.role
    calls = [_call(f"{place}.tool_calls[{at}]", call) for at, call in enumerate(message.tool_calls or ())]
    further = {"tool_calls": calls or None, "tool_call_id": message.tool_call_id, "name": message.name}
    given = {name: value for name, value in further.items() if value is not None}
    return ChatMessage(role, _content(place, message), given)


def _content(place: str, message: MessageBody) -> str:
    match message.content:
        case str(text):
            return text
        case None:
            if message.tool_calls:
                return ""
            raise InvalidRequest(f"{place} has no content: send text", field=f"{place}.content")
        case parts:
            return "\n".join(_text(f"{place}.content[{at}]", part) for at, part in enumerate(parts))


def _text(place: str, part: ContentPart) -> str:
    if part.type != "text" or part.text is None:
        said = f"{place} is of type {part.type[:40]!r}: models here take text alone"
        raise InvalidRequest(said, field=place)
    return part.text


def _call(place: str, call: CallBody) -> dict[str, object]:
    function = call.function
    return call_for_template(f"{place}.function", call.id or "", function.name, function.arguments or "")


def tools_of(tools: Sequence[ToolBody]) -> tuple[dict[str, Any], ...]:
    """The tools as templates take them: as they were sent."""
    return tuple(tool.model_dump(exclude_unset=True) for tool in tools)


def choice_of_body(choice: ToolMode | NamedTool) -> ToolChoice:
    if isinstance(choice, NamedTool):
        return ToolChoice("required", choice.function.name)
    return ToolChoice(choice)
