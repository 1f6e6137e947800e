"""Conversations and tools, from messages to the front's values."""

import json

from tokenmux.core.errors import InvalidRequest
from tokenmux.server.front.counts import check_count
from tokenmux.server.front.generation import (
    Chat,
    ChatMessage,
    Text,
    ToolChoice,
    ToolMode,
)
from tokenmux.server.front.request_rules import (
    MAX_CALLS,
    MAX_CHAT_MESSAGES,
    MAX_DOCUMENTS,
    MAX_TOOLS,
)
from tokenmux.server.front.tool_use import call_for_template
from tokenmux.v1 import inference_pb2

MAX_JSON_CHARS = 1 << 16
"""Bounds one tool, one document or all template arguments, which are parsed on the event loop."""


def text_or_chat_of(request: inference_pb2.TokenizeRequest) -> Text | Chat:
    """What to tokenize. Raises InvalidRequest if there is nothing."""
    match request.WhichOneof("prompt"):
        case "text":
            return Text(request.text)
        case "chat":
            return chat_of(request.chat)
        case _:
            raise InvalidRequest("there is nothing to tokenize: give text or chat")


def chat_of(chat: inference_pb2.Chat) -> Chat:
    check_count("chat messages", chat.messages, MAX_CHAT_MESSAGES, field="messages")
    check_count("tools", chat.tools, MAX_TOOLS, field="tools")
    check_count("documents", chat.documents, MAX_DOCUMENTS, field="documents")
    return Chat(
        tuple(_chat_message(f"messages[{at}]", message) for at, message in enumerate(chat.messages)),
        tuple(_json_object("tools", tool) for tool in chat.tools),
        tuple(_json_object("documents", document) for document in chat.documents),
        _json_object("template_arguments_json", chat.template_arguments_json or "{}"),
        chat.continue_final_message,
    )


def _chat_message(place: str, message: inference_pb2.ChatMessage) -> ChatMessage:
    check_count(f"calls in {place}", message.tool_calls, MAX_CALLS, field="messages")
    calls = [
        call_for_template(f"{place}.tool_calls[{at}]", call.id, call.name, call.arguments)
        for at, call in enumerate(message.tool_calls)
    ]
    further = {"tool_calls": calls, "tool_call_id": message.tool_call_id, "name": message.name}
    return ChatMessage(message.role, message.content, {key: value for key, value in further.items() if value})


def _json_object(name: str, text: str) -> dict[str, object]:
    """Raises InvalidRequest for what is not a JSON object, or too long."""
    if len(text) > MAX_JSON_CHARS:
        raise InvalidRequest(
            f"{name} has {len(text)} characters: at most {MAX_JSON_CHARS} are allowed",
            limit=MAX_JSON_CHARS,
            given=len(text),
        )
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not JSON ({str(error)[:100]}): write an object") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{name} is not a JSON object: write {{...}}")
    return found


_TOOL_MODES: dict[int, ToolMode] = {
    inference_pb2.TOOL_MODE_UNSPECIFIED: "auto",
    inference_pb2.TOOL_MODE_AUTO: "auto",
    inference_pb2.TOOL_MODE_NONE: "none",
    inference_pb2.TOOL_MODE_REQUIRED: "required",
    inference_pb2.TOOL_MODE_TEXT: "text",
}


def tool_choice_of(choice: inference_pb2.ToolChoice) -> ToolChoice:
    if choice.WhichOneof("kind") == "name":
        if not choice.name:
            raise InvalidRequest("tool_choice names no tool: give its name, or a mode", field="tool_choice")
        return ToolChoice("required", choice.name)
    if choice.mode not in _TOOL_MODES:
        said = f"tool_choice has mode {choice.mode}, which is not known: use AUTO, NONE, REQUIRED or TEXT"
        raise InvalidRequest(said, field="tool_choice")
    return ToolChoice(_TOOL_MODES[choice.mode])
