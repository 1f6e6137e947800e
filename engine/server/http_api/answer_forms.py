"""What the front says of a request, in the two forms that OpenAI's dialect has: text and chat.

whole                 one answer
first, delta, last    the chunks of a stream, and then `usage` if it was asked for
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tokenmux.core.request import FinishReason
from tokenmux.server.front.generation import FinishInfo
from tokenmux.server.http_api.answer_bodies import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    CompletionChoice,
    Ending,
    MessageDelta,
    TextCompletion,
    UsageBody,
)
from tokenmux.server.http_api.scored_tokens import ScoredToken, chat_logprobs, completion_logprobs


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
class OutputPiece:
    """The output, or a piece of it. `tokens` are there if their log-probabilities were asked for."""

    text: str
    tokens: tuple[ScoredToken, ...] = ()


class AnswerForm(Protocol):
    """Each method but `first` returns a JSON document."""

    id_prefix: str

    def whole(self, head: AnswerHead, piece: OutputPiece, finish: FinishInfo) -> bytes: ...

    def first(self, head: AnswerHead) -> bytes | None:
        """The chunk before the first piece of text, if the form has one."""
        ...

    def delta(self, head: AnswerHead, piece: OutputPiece) -> bytes: ...

    def last(self, head: AnswerHead, finish: FinishInfo) -> bytes: ...

    def usage(self, head: AnswerHead, finish: FinishInfo) -> bytes: ...


class TextForm:
    """The form of `/v1/completions`."""

    id_prefix = "cmpl-"

    def whole(self, head: AnswerHead, piece: OutputPiece, finish: FinishInfo) -> bytes:
        return self._json(head, [_text_choice(head, piece, finish)], _usage(finish))

    def first(self, head: AnswerHead) -> None:
        return None

    def delta(self, head: AnswerHead, piece: OutputPiece) -> bytes:
        return self._json(head, [_text_choice(head, piece, None)])

    def last(self, head: AnswerHead, finish: FinishInfo) -> bytes:
        return self._json(head, [_text_choice(head, OutputPiece(""), finish)])

    def usage(self, head: AnswerHead, finish: FinishInfo) -> bytes:
        return self._json(head, [], _usage(finish))

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

    def whole(self, head: AnswerHead, piece: OutputPiece, finish: FinishInfo) -> bytes:
        choice = ChatChoice(
            index=0,
            message=AssistantMessage(role="assistant", content=piece.text),
            logprobs=chat_logprobs(piece.tokens),
            finish_reason=_ending(finish),
            stop_reason=_stop_reason(head, finish),
        )
        body = ChatCompletion(
            id=head.id,
            object="chat.completion",
            created=head.created,
            model=head.model,
            choices=[choice],
            usage=_usage(finish),
        )
        return body.model_dump_json(exclude_unset=True).encode()

    def first(self, head: AnswerHead) -> bytes:
        return self._chunk(head, [_chat_choice(head, MessageDelta(role="assistant", content=""))])

    def delta(self, head: AnswerHead, piece: OutputPiece) -> bytes:
        return self._chunk(head, [_chat_choice(head, MessageDelta(content=piece.text), tokens=piece.tokens)])

    def last(self, head: AnswerHead, finish: FinishInfo) -> bytes:
        return self._chunk(head, [_chat_choice(head, MessageDelta(), finish)])

    def usage(self, head: AnswerHead, finish: FinishInfo) -> bytes:
        return self._chunk(head, [], _usage(finish))

    def _chunk(
        self, head: AnswerHead, choices: list[ChatChunkChoice], usage: UsageBody | None = None
    ) -> bytes:
        kind: Literal["chat.completion.chunk"] = "chat.completion.chunk"
        body = ChatChunk(id=head.id, object=kind, created=head.created, model=head.model, choices=choices)
        if head.with_usage:
            body.usage = usage
        return body.model_dump_json(exclude_unset=True).encode()


def _text_choice(head: AnswerHead, piece: OutputPiece, finish: FinishInfo | None) -> CompletionChoice:
    logprobs = completion_logprobs(piece.tokens)
    if finish is None:
        return CompletionChoice(index=0, text=piece.text, logprobs=logprobs, finish_reason=None)
    return CompletionChoice(
        index=0,
        text=piece.text,
        logprobs=logprobs,
        finish_reason=_ending(finish),
        stop_reason=_stop_reason(head, finish),
    )


def _chat_choice(
    head: AnswerHead,
    delta: MessageDelta,
    finish: FinishInfo | None = None,
    tokens: Sequence[ScoredToken] = (),
) -> ChatChunkChoice:
    logprobs = chat_logprobs(tokens)
    if finish is None:
        return ChatChunkChoice(index=0, delta=delta, logprobs=logprobs, finish_reason=None)
    return ChatChunkChoice(
        index=0,
        delta=delta,
        logprobs=logprobs,
        finish_reason=_ending(finish),
        stop_reason=_stop_reason(head, finish),
    )


def _ending(finish: FinishInfo) -> Ending:
    return "length" if finish.reason is FinishReason.LENGTH else "stop"


def _stop_reason(head: AnswerHead, finish: FinishInfo) -> str | int | None:
    """What the client named and ended the text; None if the model itself did, or the limit."""
    if finish.stop_string is not None:
        return finish.stop_string
    return finish.stop_token_id if finish.stop_token_id in head.stop_token_ids else None


def _usage(finish: FinishInfo) -> UsageBody:
    return UsageBody(
        prompt_tokens=finish.n_prompt,
        completion_tokens=finish.n_completion,
        total_tokens=finish.n_prompt + finish.n_completion,
    )
