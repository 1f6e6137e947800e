"""What the front says of a request, in the two forms that OpenAI's dialect has: text and chat.

whole                 one answer, with all choices
first, delta, last    the chunks of a choice in a stream, and then `usage` if it was asked for
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tokenmux.core.request import FinishReason
from tokenmux.server.front.generation import FinishInfo, PlacedCall
from tokenmux.server.http_api.answer_bodies import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    CompletionChoice,
    Ending,
    FunctionCallBody,
    FunctionCallChunk,
    MessageDelta,
    PromptLogprobsBody,
    PromptTokensBody,
    TextCompletion,
    ToolCallBody,
    ToolCallChunk,
    UsageBody,
)
from tokenmux.server.http_api.outputs import OutputPiece
from tokenmux.server.http_api.scored_tokens import chat_logprobs, completion_logprobs


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What all chunks of an answer repeat."""

    id: str
    created: int
    model: str
    with_usage: bool
    """True if the client asked for usage at the end of its stream."""
    stop_token_ids: frozenset[int]
    """Those that the client named."""


@dataclass(frozen=True, slots=True)
class WholeOutput:
    """An output from its beginning to its end."""

    piece: OutputPiece
    end: FinishInfo


class AnswerForm(Protocol):
    """Each method but `first` returns a JSON document."""

    id_prefix: str

    def whole(
        self, head: AnswerHead, outputs: Sequence[WholeOutput], prompt: PromptLogprobsBody | None
    ) -> bytes:
        """`prompt` is what is told of the prompt, if that was asked for."""
        ...

    def first(self, head: AnswerHead, choice: int) -> bytes | None:
        """The chunk before the first piece of text, if the form has one."""
        ...

    def delta(self, head: AnswerHead, choice: int, piece: OutputPiece) -> bytes: ...

    def last(self, head: AnswerHead, end: FinishInfo) -> bytes: ...

    def usage(self, head: AnswerHead, ends: Sequence[FinishInfo]) -> bytes: ...


class TextForm:
    """The form of `/v1/completions`."""

    id_prefix = "cmpl-"

    def whole(
        self, head: AnswerHead, outputs: Sequence[WholeOutput], prompt: PromptLogprobsBody | None
    ) -> bytes:
        choices = [_text_choice(head, one.end.choice, one.piece, one.end) for one in outputs]
        for choice in choices if prompt is not None else ():
            choice.prompt_logprobs = prompt
        return self._json(head, choices, _usage([one.end for one in outputs]))

    def first(self, head: AnswerHead, choice: int) -> None:
        return None

    def delta(self, head: AnswerHead, choice: int, piece: OutputPiece) -> bytes:
        return self._json(head, [_text_choice(head, choice, piece, None)])

    def last(self, head: AnswerHead, end: FinishInfo) -> bytes:
        return self._json(head, [_text_choice(head, end.choice, OutputPiece(""), end)])

    def usage(self, head: AnswerHead, ends: Sequence[FinishInfo]) -> bytes:
        return self._json(head, [], _usage(ends))

    def _json(
        self, head: AnswerHead, choices: list[CompletionChoice], usage: UsageBody | None = None
    ) -> bytes:
        kind: Literal["text_completion"] = "text_completion"
        body = TextCompletion(
            id=head.id, object=kind, created=head.created, model=head.model, choices=choices
        )
        if usage is not None or head.with_usage:
            body.usage = usage
        return body.model_dump_json(exclude_unset=True).encode()


class ChatForm:
    """The form of `/v1/chat/completions`."""

    id_prefix = "chatcmpl-"

    def whole(
        self, head: AnswerHead, outputs: Sequence[WholeOutput], prompt: PromptLogprobsBody | None
    ) -> bytes:
        body = ChatCompletion(
            id=head.id,
            object="chat.completion",
            created=head.created,
            model=head.model,
            choices=[_whole_choice(head, output) for output in outputs],
            usage=_usage([output.end for output in outputs]),
        )
        if prompt is not None:
            body.prompt_logprobs = prompt
        return body.model_dump_json(exclude_unset=True).encode()

    def first(self, head: AnswerHead, choice: int) -> bytes:
        return self._chunk(head, [_chat_choice(choice, MessageDelta(role="assistant", content=""))])

    def delta(self, head: AnswerHead, choice: int, piece: OutputPiece) -> bytes:
        delta = MessageDelta()
        if piece.text or not piece.calls:
            delta.content = piece.text
        if piece.calls:
            delta.tool_calls = [_call_chunk(placed) for placed in piece.calls]
        chunk = _chat_choice(choice, delta)
        chunk.logprobs = chat_logprobs(piece.tokens)
        return self._chunk(head, [chunk])

    def last(self, head: AnswerHead, end: FinishInfo) -> bytes:
        chunk = _chat_choice(end.choice, MessageDelta())
        chunk.finish_reason = _ending(end)
        chunk.stop_reason = _stop_reason(head, end)
        return self._chunk(head, [chunk])

    def usage(self, head: AnswerHead, ends: Sequence[FinishInfo]) -> bytes:
        return self._chunk(head, [], _usage(ends))

    def _chunk(
        self, head: AnswerHead, choices: list[ChatChunkChoice], usage: UsageBody | None = None
    ) -> bytes:
        kind: Literal["chat.completion.chunk"] = "chat.completion.chunk"
        body = ChatChunk(id=head.id, object=kind, created=head.created, model=head.model, choices=choices)
        if head.with_usage:
            body.usage = usage
        return body.model_dump_json(exclude_unset=True).encode()


def _text_choice(
    head: AnswerHead, choice: int, piece: OutputPiece, end: FinishInfo | None
) -> CompletionChoice:
    logprobs = completion_logprobs(piece.tokens)
    if end is None:
        return CompletionChoice(index=choice, text=piece.text, logprobs=logprobs, finish_reason=None)
    return CompletionChoice(
        index=choice,
        text=piece.text,
        logprobs=logprobs,
        finish_reason=_ending(end),
        stop_reason=_stop_reason(head, end),
    )


def _whole_choice(head: AnswerHead, output: WholeOutput) -> ChatChoice:
    piece, end = output.piece, output.end
    message = AssistantMessage(role="assistant", content=piece.text)
    if piece.calls:
        message.content = piece.text or None
        message.tool_calls = [
            ToolCallBody(
                id=placed.start.id,
                type="function",
                function=FunctionCallBody(name=placed.start.name, arguments=placed.arguments),
            )
            for placed in piece.calls
            if placed.start is not None
        ]
    return ChatChoice(
        index=end.choice,
        message=message,
        logprobs=chat_logprobs(piece.tokens),
        finish_reason=_ending(end),
        stop_reason=_stop_reason(head, end),
    )


def _chat_choice(choice: int, delta: MessageDelta) -> ChatChunkChoice:
    return ChatChunkChoice(index=choice, delta=delta, logprobs=None, finish_reason=None)


def _call_chunk(placed: PlacedCall) -> ToolCallChunk:
    if placed.start is None:
        return ToolCallChunk(index=placed.index, function=FunctionCallChunk(arguments=placed.arguments))
    function = FunctionCallChunk(name=placed.start.name, arguments=placed.arguments)
    return ToolCallChunk(index=placed.index, id=placed.start.id, type="function", function=function)


def _ending(end: FinishInfo) -> Ending:
    if end.reason is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if end.called else "stop"


def _stop_reason(head: AnswerHead, finish: FinishInfo) -> str | int | None:
    """What the client named and ended the text; None if the model itself did, or the limit."""
    if finish.stop_string is not None:
        return finish.stop_string
    return finish.stop_token_id if finish.stop_token_id in head.stop_token_ids else None


def _usage(ends: Sequence[FinishInfo]) -> UsageBody:
    """The usage of all choices, which share one prompt."""
    n_prompt = ends[0].n_prompt
    n_completion = sum(end.n_completion for end in ends)
    return UsageBody(
        prompt_tokens=n_prompt,
        completion_tokens=n_completion,
        total_tokens=n_prompt + n_completion,
        prompt_tokens_details=PromptTokensBody(cached_tokens=min(end.n_cached for end in ends)),
    )
