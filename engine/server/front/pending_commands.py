"""Commands that a node answers, and their answers, paired by ticket."""

import asyncio
from collections.abc import Callable

from tokenmux.core.errors import ErrorCode, TokenmuxError, error_of
from tokenmux.core.span import Span
from tokenmux.messages.commands import AskTrace, Command, DeviceCommand, ModelCommand, Ticket
from tokenmux.messages.reports import Acknowledged, Traced

OperatorCommand = ModelCommand | DeviceCommand

Pending = asyncio.Future[Acknowledged | Traced]
"""The answer to a command."""


class PendingCommands:
    """Commands that were sent and not answered yet. `send` sends one and returns its ticket."""

    def __init__(self, send: Callable[[Command], Ticket]) -> None:
        self._send = send
        self._pending: dict[Ticket, Pending] = {}

    def begin(self, command: OperatorCommand) -> Pending:
        """Send a command. The future raises the node's error, or what `fail` was called with."""
        return self._ask(command)

    async def trace(self, last_s: float) -> tuple[Span, ...]:
        """What the node remembers of the last `last_s` seconds. Raises what `fail` was called with."""
        answer = await self._ask(AskTrace(last_s))
        assert isinstance(answer, Traced)
        return answer.spans

    def answered(self, answer: Acknowledged | Traced) -> None:
        """An answer arrived. One whose command was given up is ignored."""
        waiting = self._pending.pop(answer.ticket, None)
        if waiting is None or waiting.done():  # the caller was cancelled
            return
        if isinstance(answer, Acknowledged) and answer.error:
            waiting.set_exception(error_of(answer.code or ErrorCode.NOT_SERVABLE, answer.error))
        else:
            waiting.set_result(answer)

    def fail(self, error: TokenmuxError) -> None:
        """The node is gone: pending questions will not be answered."""
        pending, self._pending = self._pending, {}
        for waiting in pending.values():
            if not waiting.done():
                waiting.set_exception(error)

    def _ask(self, command: OperatorCommand | AskTrace) -> Pending:
        waiting: Pending = asyncio.get_running_loop().create_future()
        try:
            self._pending[self._send(command)] = waiting
        except TokenmuxError as error:
            waiting.set_exception(error)
        return waiting
