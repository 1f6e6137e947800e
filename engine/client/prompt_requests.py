"""Prompts and inputs as messages, and the requests that have little else."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from tokenmux.client.message_making import made
from tokenmux.client.values import Message, Prompt
from tokenmux.v1 import inference_pb2


def prompt_field(prompt: Prompt) -> dict[str, Any]:
    """The field of the oneof for this kind of prompt."""
    if isinstance(prompt, str):
        return {"text": prompt}
    if isinstance(prompt, bytes | bytearray | memoryview):
        raise TypeError("the prompt is bytes: decode them to text, or give token ids as a list of ints")
    if isinstance(prompt, Mapping | Message):
        raise TypeError("the prompt is a single message: put it in a list")
    items = [*prompt]
    if all(isinstance(item, Integral) for item in items):
        return {"token_ids": made(inference_pb2.TokenIds, ids=items)}
    return {"chat": inference_pb2.Chat(messages=[_message(item) for item in items])}


def conversation(messages: Prompt) -> Prompt:
    """Check that a prompt is a sequence of messages. Raises TypeError for text, which would not go through
    the template, and for token ids."""
    if isinstance(messages, str):
        raise TypeError("chat takes messages, such as [Message('user', text)]; generate takes text")
    if "chat" not in prompt_field(messages) and len(messages):
        raise TypeError("chat takes messages, such as [Message('user', text)]; generate takes token ids")
    return messages


def _message(item: object) -> inference_pb2.ChatMessage:
    match item:
        case Message():
            calls = [
                made(inference_pb2.ToolCall, id=call.id, name=call.name, arguments=call.arguments)
                for call in item.tool_calls
            ]
            return made(
                inference_pb2.ChatMessage,
                role=item.role,
                content=item.content,
                tool_calls=calls,
                tool_call_id=item.tool_call_id,
                name=item.name,
            )
        case Mapping() if {"role", "content"} <= item.keys() <= _MESSAGE_KEYS:
            calls = [_call(call) for call in item.get("tool_calls") or ()]
            given = {**item, "tool_calls": calls}
            return made(inference_pb2.ChatMessage, **given)
        case _:
            raise TypeError(
                f"{item!r} is not a chat message: use Message(role, content), or a mapping with these two "
                "keys, and perhaps tool_calls, tool_call_id and name"
            )


_MESSAGE_KEYS = frozenset(("role", "content", "tool_calls", "tool_call_id", "name"))


def _call(item: Any) -> inference_pb2.ToolCall:
    """A call as OpenAI has it in a message."""
    match item:
        case {"function": {"name": name, "arguments": arguments}}:
            return made(inference_pb2.ToolCall, id=item.get("id"), name=name, arguments=arguments)
        case _:
            raise TypeError(
                f'{item!r} is not a call of a tool: write {{"id": ..., "function": {{"name": ..., '
                '"arguments": ...}}}}, or use ToolCall in a Message'
            )


def tokenize_request(model: str, prompt: Prompt) -> inference_pb2.TokenizeRequest:
    """The request for a text or a conversation. Raises TypeError for token ids: there is nothing to
    tokenize."""
    given = prompt_field(prompt)
    if "token_ids" in given:
        raise TypeError("the prompt is token ids already: give text or messages")
    return made(inference_pb2.TokenizeRequest, model=model, **given)


def embed_request(
    model: str,
    inputs: Sequence[str | Sequence[int]],
    dimensions: int | None,
    tenant: str,
    weight: float | None,
) -> inference_pb2.EmbedRequest:
    """The request for embeddings. Raises TypeError for one text that is not in a list."""
    if isinstance(inputs, str | bytes):
        raise TypeError("inputs is a single text: put it in a list")
    return made(
        inference_pb2.EmbedRequest,
        model=model,
        inputs=[_embed_input(one) for one in inputs],
        dimensions=dimensions,
        tenant=tenant,
        weight=weight,
    )


def _embed_input(one: str | Sequence[int]) -> inference_pb2.EmbedInput:
    if isinstance(one, Integral):
        raise TypeError("inputs has a token id that is not in a list: give a list of ids for each input")
    given = prompt_field(one)
    if "chat" in given:
        raise TypeError("an input is neither text nor a list of token ids")
    return made(inference_pb2.EmbedInput, **given)
