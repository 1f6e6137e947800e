"""Commands to a worker about a model, or about the pool, and their acknowledgements.

A worker answers the commands about one model, and those about none, in the order in which they were sent, so
that an acknowledgement belongs to the oldest command without one.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable

from tokenmux.core.errors import ErrorCode, TokenmuxError, error_of
from tokenmux.core.facts import ModelId
from tokenmux.messages.commands import Load, Pin, Register, Resize, Unload, Unregister
from tokenmux.messages.reports import Acknowledged

OperatorCommand = Register | Unregister | Load | Unload | Pin | Resize


class Commands:
    """Commands that were sent and not answered yet."""

    def __init__(self, send: Callable[[OperatorCommand], None]) -> None:
        self._send = send
        self._pending: defaultdict[ModelId | None, deque[asyncio.Future[None]]] = defaultdict(deque)

    def begin(self, command: OperatorCommand) -> asyncio.Future[None]:
        """Send a command. The future raises the worker's error, or what `fail` was called with."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._pending[_subject(command)]
        waiting.append(answer)
        try:
            self._send(command)
        except TokenmuxError as error:
            waiting.remove(answer)
            answer.set_exception(error)
        return answer

    def acknowledge(self, message: Acknowledged) -> None:
        """An answer came. One that nobody waits for is ignored: its command was given up."""
        waiting = self._pending.get(message.model)
        if not waiting:
            return
        answer = waiting.popleft()
        if not waiting:
            del self._pending[message.model]
        if answer.done():  # who asked was cancelled
            return
        if message.error:
            answer.set_exception(error_of(message.code or ErrorCode.NOT_SERVABLE, message.error))
        else:
            answer.set_result(None)

    def fail(self, error: TokenmuxError) -> None:
        """The worker is gone: nothing that is pending will be answered."""
        pending, self._pending = self._pending, defaultdict(deque)
        for answers in pending.values():
            for answer in answers:
                if not answer.done():
                    answer.set_exception(error)


def _subject(command: OperatorCommand) -> ModelId | None:
    """The model that a command is about."""
    match command:
        case Register(facts):
            return facts.id
        case Resize():
            return None
        case Unregister(model) | Load(model) | Unload(model) | Pin(model):
            return model
