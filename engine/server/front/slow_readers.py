"""What happens when a client stops reading its stream: writing to it does not return, and tokens pile up.

    `buffer_tokens` unread ─▶ the node is told Pause: the request gets no steps, its deadlines stand still
        ├─ the client reads until half of them are left ─▶ Resume: it goes on, deadlines shifted by the pause
        ├─ `unread_s` pass ─▶ the request ends with Ended, which says what to do; the node is told Cancel
        └─ the node breaks ─▶ the next one is told of the request and of its pause

`tokenmux.server.front.buffer` counts what is unread and says when it is too much; neighbouring tokens
are merged into one event there, so that a client that is merely slow costs little memory.
"""

import asyncio
from collections.abc import Callable

from tokenmux.core.errors import SlowReader, TokenmuxError
from tokenmux.core.request import RequestId
from tokenmux.messages.commands import Command, Pause, Resume
from tokenmux.server.front.live_request import LiveRequest


class SlowReaders:
    """The requests that are paused because their clients do not read, each with its timer."""

    def __init__(
        self,
        buffer_tokens: int,
        unread_s: float,
        send: Callable[[Command], object],
        end: Callable[[LiveRequest, TokenmuxError], None],
    ) -> None:
        """`send` reaches the node, `end` ends a request from the front's side."""
        self._buffer_tokens = buffer_tokens
        self._unread_s = unread_s
        self._send = send
        self._end = end
        self._timers: dict[RequestId, asyncio.TimerHandle] = {}

    def stopped(self, live: LiveRequest) -> None:
        """Its buffer is full."""
        live.pause()
        self._send(Pause(live.id))
        loop = asyncio.get_running_loop()
        self._timers[live.id] = loop.call_later(self._unread_s, self._never_read, live)

    def resumed(self, live: LiveRequest) -> None:
        """Its client has read half of the buffer."""
        live.resume()
        self.forget(live)
        self._send(Resume(live.id))

    def given_to_node(self, live: LiveRequest) -> None:
        """A node was told of the request: tell it of the pause as well."""
        if live.paused:
            self._send(Pause(live.id))

    def forget(self, live: LiveRequest) -> None:
        """The request has ended, or its client reads again: do not end it for being unread."""
        timer = self._timers.pop(live.id, None)
        if timer is not None:
            timer.cancel()

    def _never_read(self, live: LiveRequest) -> None:
        said = (
            f"request {live.request_id} was ended: its client left more than {self._buffer_tokens} tokens "
            f"unread for {self._unread_s:g} s; read the stream as it arrives, or ask for fewer tokens"
        )
        self._end(live, SlowReader(said))
