"""Generation on the terminal: text goes to stdout as it arrives, the request's state to stderr."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from rich.console import Console

from tokenmux.cli.safe_text import shown_on
from tokenmux.client import (
    Client,
    Completion,
    Delta,
    Finish,
    GenerateOptions,
    GenerationEvent,
    Message,
    Phase,
    PromptLogprobs,
    State,
    TokenLogprobs,
    ToolCall,
    ToolCallDelta,
)


@dataclass(slots=True)
class Shown:
    """What was printed of a stream: its text, its calls of tools, and how it ended."""

    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    finish: Finish | None = None

    def take_call(self, piece: ToolCallDelta) -> None:
        """Add a call, or a piece of one."""
        if piece.index == len(self.calls):
            self.calls.append(ToolCall(piece.id, piece.name, ""))
        call = self.calls[piece.index]
        self.calls[piece.index] = replace(call, arguments=call.arguments + piece.arguments)


def show_stream(events: Iterable[GenerationEvent], errors: Console) -> Shown:
    """Print a stream as it arrives, and its calls and log-probabilities at its end."""
    shown = Shown()
    logprobs: list[tuple[int, TokenLogprobs]] = []
    with errors.status("sent") as waiting:
        for event in events:
            match event:
                case State():
                    waiting.update(_shown_state(event))
                case PromptLogprobs():
                    _show_prompt(event, errors)
                case Delta():
                    logprobs += zip(event.token_ids, event.logprobs, strict=False)
                    if event.text and not shown.text:
                        waiting.stop()
                    shown.text += event.text
                    for piece in event.tool_calls:
                        shown.take_call(piece)
                    sys.stdout.write(shown_on(sys.stdout, event.text))
                    sys.stdout.flush()
                case Finish():
                    shown.finish = event
    if shown.text or not shown.calls:
        sys.stdout.write("\n")
    for call in shown.calls:
        sys.stdout.write(shown_on(sys.stdout, f"{call.name}({call.arguments})\n"))
    sys.stdout.flush()
    for token, told in logprobs:
        _show_logprobs("token", token, told, errors)
    return shown


def show_choices(answer: Completion, errors: Console) -> list[Finish]:
    """Print the choices of an answer one after another. Returns how they ended."""
    if answer.prompt_logprobs is not None:
        _show_prompt(answer.prompt_logprobs, errors)
    for number, choice in enumerate(answer.choices, start=1):
        errors.print(f"answer {number} of {len(answer.choices)}", style="dim", highlight=False)
        sys.stdout.write(shown_on(sys.stdout, choice.text) + "\n")
        sys.stdout.flush()
        for token, told in zip(choice.token_ids, choice.logprobs, strict=False):
            _show_logprobs("token", token, told, errors)
    return [choice.finish for choice in answer.choices]


def _show_prompt(prompt: PromptLogprobs, errors: Console) -> None:
    for token, told in zip(prompt.token_ids, prompt.logprobs, strict=True):
        _show_logprobs("prompt token", token, told, errors)


def _show_logprobs(kind: str, token: int, told: TokenLogprobs | None, errors: Console) -> None:
    line = f"{kind} {token}"
    if told is not None:
        likeliest = "".join(f"  {other} {value:.4f}" for other, value in told.top)
        line += f" {told.logprob:.4f}{likeliest}"
    errors.print(line, style="dim", highlight=False)


def summary_line(finish: Finish) -> str:
    """Token counts and times of a request in one line."""
    rate = ""
    if finish.n_completion_tokens > 1 and finish.total_s > finish.ttft_s:
        rate = f", then {(finish.n_completion_tokens - 1) / (finish.total_s - finish.ttft_s):.1f} tokens/s"
    cached = f" ({finish.n_cached_prompt_tokens} cached)" if finish.n_cached_prompt_tokens else ""
    return (
        f"{finish.n_prompt_tokens} prompt tokens{cached}, {finish.n_completion_tokens} tokens, "
        f"{finish.n_tokens_on_time} on time, "
        f"first after {finish.ttft_s:.2f} s{rate}, ended by {finish.reason}, seed {finish.seed}"
    )


def converse(
    client: Client, model: str, system: str | None, errors: Console, options: GenerateOptions
) -> None:
    """Answer line after line until the input ends, with the conversation so far. After calls of tools, a line
    is the result of each, in order. Ctrl-C cancels an answer, or quits."""
    history = [Message("system", system)] if system else []
    called: list[ToolCall] = []
    while True:
        try:
            said = _results(called) if called else _question()
        except EOFError:
            return
        if not said:
            continue
        stream = client.stream(model, [*history, *said], **options)
        try:
            answer = show_stream(stream, errors)
        except KeyboardInterrupt:
            stream.cancel()
            errors.print("cancelled", style="dim")
            continue
        history += [*said, Message("assistant", answer.text, tuple(answer.calls))]
        called = answer.calls


def _question() -> list[Message]:
    line = input("> " if sys.stdin.isatty() else "")
    return [Message("user", line)] if line.strip() else []


def _results(calls: Iterable[ToolCall]) -> list[Message]:
    """What each call returned, as the user says."""
    return [
        Message("tool", input(f"{call.name}> " if sys.stdin.isatty() else ""), (), call.id, call.name)
        for call in calls
    ]


def _shown_state(state: State) -> str:
    match state.phase:
        case Phase.QUEUED:
            return f"queued behind {state.position}" if state.position else "queued"
        case Phase.LOADING:
            return f"loading the model, {state.progress:.0%}"
        case _:
            return str(state.phase.value)
