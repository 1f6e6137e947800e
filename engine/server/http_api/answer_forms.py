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
    with_token_ids: bool = False
    """True if the client asked for the token ids of prompt and output."""


@dataclass(frozen=True, slots=True)
class WholeOutput:
    """An output from its beginning to its end."""

    piece: OutputPiece
    end: FinishInfo


@dataclass(frozen=True, slots=True)
class AnsweredPrompt:
    """All outputs of a prompt, and what is told of the prompt, if that was asked for. `token_ids` are the
    prompt's."""

    outputs: Sequence[WholeOutput]
    told: PromptLogprobsBody | None
    token_ids: tuple[int, ...]


class AnswerForm(Protocol):
    """Each method but `first` returns a JSON document."""

    id_prefix: str

    def whole(self, head: AnswerHead, prompts: Sequence[AnsweredPrompt]) -> bytes: ...

    def first(self, head: AnswerHead, choice: int, prompt: Sequence[int]) -> bytes | None:
        """The chunk before the first piece of text, if the form has one; `prompt` are the prompt's token
        ids."""
        ...

    def delta(self, head: AnswerHead, choice: int, piece: OutputPiece) -> bytes: ...

    def last(self, head: AnswerHead, end: FinishInfo) -> bytes: ...

    def usage(self, head: AnswerHead, ends: Sequence[Sequence[FinishInfo]]) -> bytes:
        """`ends` are those of each prompt."""
        ...


class TextForm:
    """The form of `/v1/completions`."""

    id_prefix = "cmpl-"

    def whole(self, head: AnswerHead, prompts: Sequence[AnsweredPrompt]) -> bytes:
        choices = []
        for prompt in prompts:
            for one in prompt.outputs:
                choice = _text_choice(head, one.end.choice, one.piece, one.end)
                if prompt.told is not None:
                    choice.prompt_logprobs = prompt.told
                if head.with_token_ids:
                    choice.prompt_token_ids = list(prompt.token_ids)
                choices.append(choice)
        return self._json(head, choices, _usage_of(prompts))

    def first(self, head: AnswerHead, choice: int, prompt: Sequence[int]) -> bytes | None:
        if not head.with_token_ids:
            return None
        chunk = _text_choice(head, choice, OutputPiece(""), None)
        chunk.prompt_token_ids = list(prompt)
        return self._json(head, [chunk])

    def delta(self, head: AnswerHead, choice: int, piece: OutputPiece) -> bytes:
        return self._json(head, [_text_choice(head, choice, piece, None)])

    def last(self, head: AnswerHead, end: FinishInfo) -> bytes:
        return self._json(head, [_text_choice(head, end.choice, OutputPiece(""), end)])

    def usage(self, head: AnswerHead, ends: Sequence[Sequence[FinishInfo]]) -> bytes:
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

    def whole(self, head: AnswerHead, prompts: Sequence[AnsweredPrompt]) -> bytes:
        (prompt,) = prompts
        body = ChatCompletion(
            id=head.id,
            object="chat.completion",
            created=head.created,
            model=head.model,
            choices=[_whole_choice(head, output) for output in prompt.outputs],
            usage=_usage_of(prompts),
        )
        if prompt.told is not None:
            body.prompt_logprobs = prompt.told
        if head.with_token_ids:
            body.prompt_token_ids = list(prompt.token_ids)
        return body.model_dump_json(exclude_unset=True).encode()

    def first(self, head: AnswerHead, choice: int, prompt: Sequence[int]) -> bytes:
        begun = _chat_choice(choice, MessageDelta(role="assistant", content=""))
        return self._chunk(head, [begun], prompt=prompt if head.with_token_ids else None)

    def delta(self, head: AnswerHead, choice: int, piece: OutputPiece) -> bytes:
        delta = MessageDelta()
        if piece.text or not piece.calls:
            delta.content = piece.text
        if piece.calls:
            delta.tool_calls = [_call_chunk(placed) for placed in piece.calls]
        chunk = _chat_choice(choice, delta)
        chunk.logprobs = chat_logprobs(piece.tokens)
        if head.with_token_ids:
            chunk.token_ids = list(piece.token_ids)
        return self._chunk(head, [chunk])

    def last(self, head: AnswerHead, end: FinishInfo) -> bytes:
        chunk = _chat_choice(end.choice, MessageDelta())
        chunk.finish_reason = _ending(end)
        chunk.stop_reason = _stop_reason(head, end)
        return self._chunk(head, [chunk])

    def usage(self, head: AnswerHead, ends: Sequence[Sequence[FinishInfo]]) -> bytes:
        return self._chunk(head, [], _usage(ends))

    def _chunk(
        self,
        head: AnswerHead,
        choices: list[ChatChunkChoice],
        usage: UsageBody | None = None,
        *,
        prompt: Sequence[int] | None = None,
    ) -> bytes:
        kind: Literal["chat.completion.chunk"] = "chat.completion.chunk"
        body = ChatChunk(id=head.id, object=kind, created=head.created, model=head.model, choices=choices)
        if head.with_usage:
            body.usage = usage
        if prompt is not None:
            body.prompt_token_ids = list(prompt)
        return body.model_dump_json(exclude_unset=True).encode()


def _text_choice(
    head: AnswerHead, choice: int, piece: OutputPiece, end: FinishInfo | None
) -> CompletionChoice:
    choice_body = CompletionChoice(
        index=choice, text=piece.text, logprobs=completion_logprobs(piece.tokens), finish_reason=None
    )
    if head.with_token_ids:
        choice_body.token_ids = list(piece.token_ids)
    if end is not None:
        choice_body.finish_reason = _ending(end)
        choice_body.stop_reason = _stop_reason(head, end)
    return choice_body


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
    choice = ChatChoice(
        index=end.choice,
        message=message,
        logprobs=chat_logprobs(piece.tokens),
        finish_reason=_ending(end),
        stop_reason=_stop_reason(head, end),
    )
    if head.with_token_ids:
        choice.token_ids = list(piece.token_ids)
    return choice


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


def _usage_of(prompts: Sequence[AnsweredPrompt]) -> UsageBody:
    return _usage([[output.end for output in prompt.outputs] for prompt in prompts])


def _usage(ends: Sequence[Sequence[FinishInfo]]) -> UsageBody:
    """The usage of all prompts. The choices of one share it."""
    n_prompt = sum(of_prompt[0].n_prompt for of_prompt in ends)
    n_completion = sum(end.n_completion for of_prompt in ends for end in of_prompt)
    n_cached = sum(min(end.n_cached for end in of_prompt) for of_prompt in ends)
    return UsageBody(
        prompt_tokens=n_prompt,
        completion_tokens=n_completion,
        total_tokens=n_prompt + n_completion,
        prompt_tokens_details=PromptTokensBody(cached_tokens=n_cached),
    )
