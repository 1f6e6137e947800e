"""Nodes that do what a test says, for tests of a front without a process behind it.

`ScriptedNodes` is the factory that a front is given. It holds every node that it started, every command
that one was sent, and what they are to answer.
"""

import asyncio
from array import array
from collections.abc import Callable
from typing import TypeVar

from tokenmux.core.errors import ErrorCode, ProcessFailed
from tokenmux.core.facts import FIRST_NODE, InstanceId
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.pooling import PooledRows, PoolingKind, pooled_positions
from tokenmux.core.request import FinishReason
from tokenmux.core.sampling import LogProbabilities
from tokenmux.core.span import Span
from tokenmux.messages.commands import (
    AddDevice,
    AskTrace,
    Cancel,
    Command,
    DrainDevice,
    Load,
    Order,
    Pin,
    Register,
    RemoveDevice,
    Resize,
    Submit,
    Ticket,
    Unload,
    Unregister,
)
from tokenmux.messages.reports import (
    Acknowledged,
    Finished,
    PromptPooled,
    PromptTold,
    Report,
    Reports,
    Tokens,
    Traced,
)
from tokenmux.messages.setups import PresentDevices

Wanted = TypeVar("Wanted", bound=Command)

_PATIENCE_S = 10.0
"""How long a test waits for a command that must come: only a failing one waits that long."""


def make_reports(*reports: Report) -> Reports:
    """These reports as the first node sends them."""
    return Reports(FIRST_NODE, reports)


class ScriptedNode:
    """Acknowledges commands and ends what is cancelled; tokens come when the test says so, or at once with
    `auto`."""

    def __init__(
        self, script: "ScriptedNodes", post: Callable[[Reports], None], devices: PresentDevices
    ) -> None:
        self.script = script
        self._post = post
        self.device_ticket = Ticket(0)
        """The ticket of the last command about a device."""
        self.devices = devices
        """Those with which it was started."""
        self._n_numbered = devices.n_numbered
        self.dead = False
        self.killed = False
        self.closed = False

    def post(self, *reports: Report) -> None:
        self._post(make_reports(*reports))

    def send(self, order: Order) -> None:
        if self.dead:
            raise ProcessFailed("the pipe is closed")
        ticket, command = order.ticket, order.command
        self.script.sent.put_nowait(command)
        if isinstance(command, AddDevice | DrainDevice | RemoveDevice | Resize):
            self.device_ticket = ticket
        match command:
            case Register(model_facts):
                self.post(Acknowledged(ticket, self.script.refuses.get(model_facts.id, "")))
            case Pin(model, pinned=True) if model in self.script.refuses_pins:
                self.post(Acknowledged(ticket, self.script.refuses_pins[model], ErrorCode.DOES_NOT_FIT))
            case Unregister(model) | Load(model) | Unload(model) | Pin(model):
                code = self.script.codes.get(model)
                self.post(Acknowledged(ticket, self.script.refuses.get(model, ""), code))
            case AddDevice() if self.script.answer_devices:
                self._answer_about_device(ticket, InstanceId(self._n_numbered))
                self._n_numbered += 1
            case DrainDevice() | RemoveDevice() | Resize() if self.script.answer_devices:
                self._answer_about_device(ticket)
            case AskTrace(last_s) if self.script.answer_traces:
                self.post(
                    Traced(ticket, tuple(span for span in self.script.spans if span.end_s >= 100.0 - last_s))
                )
            case Cancel(request, reason) if self.script.answer_cancels:
                self.post(Finished(request, reason, 0.0))
            case Submit(request) if self.script.auto:
                self.run(command)

    def _answer_about_device(self, ticket: Ticket, added: InstanceId | None = None) -> None:
        error = self.script.refuses.get("device", "")
        self.post(Acknowledged(ticket, error, ErrorCode.DOES_NOT_FIT, None if error else added))

    def run(self, submit: Submit, *, wide: int = 1) -> None:
        """All tokens of a request at once: the letters after the last one of the prompt, up to a stop token.
        If it wants to be told of its prompt, each token has minus its id as log-probability, and is the only
        likely one.

        One for an embedding is answered as if the hidden state of each token were its id, once for each of
        `script.n_dimensions`, and a prompt were computed in cells of two tokens."""
        request, output = submit.request, scripted_output(submit)
        if submit.n_prompt_likeliest is not None and len(submit.prompt) > 1:
            likely = submit.n_prompt_likeliest > 0
            told = [
                LogProbabilities(-float(token), ((token, -float(token)),) if likely else ())
                for token in submit.prompt[1:]
            ]
            self.post(PromptTold(request.id, 1, tuple(told)))
        self.post(PhaseChanged(request.id, RequestPhase.QUEUED, position=2))
        self.post(PhaseChanged(request.id, RequestPhase.RUNNING))
        if submit.pooling is not None:
            self._pool(submit, submit.pooling)
        if not submit.draws:
            n_cached = self.script.n_cached
            self.post(Finished(request.id, FinishReason.LENGTH, request.arrival_s, n_cached=n_cached))
            return
        for index in range(len(submit.delivered), len(output), wide):
            n_cached = self.script.n_cached if index == len(submit.delivered) else 0
            token_ids = tuple(output[index : index + wide])
            self.post(Tokens(request.id, index, token_ids, request.arrival_s, n_cached=n_cached))
        stopped = output[-1] in submit.stop_token_ids and len(output) >= submit.min_tokens
        reason = FinishReason.STOP if stopped else FinishReason.LENGTH
        self.post(Finished(request.id, reason, request.arrival_s))

    def _pool(self, submit: Submit, kind: PoolingKind) -> None:
        request = submit.request
        start, end = pooled_positions(kind, request.n_prompt)
        for first in range(start, end, 2):
            tokens = submit.prompt[first : min(first + 2, end)]
            sums = array("f", [float(sum(tokens))] * self.script.n_dimensions).tobytes()
            self.post(PromptPooled(request.id, PooledRows(first, len(tokens), sums)))

    def kill(self) -> None:
        self.dead = self.killed = True

    def close(self) -> None:
        self.closed = True


def scripted_output(submit: Submit) -> list[int]:
    """What a scripted node answers to a prompt: the token ids after its last one, in turn, up to
    a stop token."""
    first, output = submit.prompt[-1] + 1, []
    for index in range(submit.request.max_tokens):
        output.append(first + index % 20)
        if output[-1] in submit.stop_token_ids and len(output) >= submit.min_tokens:
            break
    return output


class ScriptedNodes:
    """Starts scripted nodes. With `auto` they answer every request at once and in full."""

    def __init__(self, *, auto: bool = False) -> None:
        self.auto = auto
        self.n_cached = 0
        """Tokens of each prompt that the prefix cache has."""
        self.answer_cancels = True
        self.answer_traces = True
        self.answer_devices = True
        self.spans: list[Span] = []
        self.refuses: dict[str, str] = {}
        """Reasons by model, and "device" for all commands about devices."""
        self.codes: dict[str, ErrorCode] = {}
        """The error codes with which models are refused, by model."""
        self.refuses_pins: dict[str, str] = {}
        self.fails_to_start = 0
        self.n_dimensions = 3
        """Size of the hidden states of all models."""
        self.nodes: list[ScriptedNode] = []
        self.sent: asyncio.Queue[Command] = asyncio.Queue()

    def factory(self, post: Callable[[Reports], None], *, devices: PresentDevices) -> ScriptedNode:
        if self.fails_to_start:
            self.fails_to_start -= 1
            raise OSError("no more processes")
        node = ScriptedNode(self, post, devices)
        self.nodes.append(node)
        return node

    @property
    def node(self) -> ScriptedNode:
        return self.nodes[-1]

    def post(self, message: Report) -> None:
        self.node.post(message)

    async def next(self, kind: type[Wanted]) -> Wanted:
        """The next command of this kind that is sent to a node; others before it are skipped."""
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                message = await self.sent.get()
                if isinstance(message, kind):
                    return message

    def unread(self) -> list[Command]:
        """Commands that were sent and that `next` has not returned or skipped."""
        return [self.sent.get_nowait() for _ in range(self.sent.qsize())]
