"""What one client has not read yet: a buffer between a node that produces and a connection that may not
take.

It never blocks the producer and still stays small: adjacent token deltas are merged, those of several
choices whatever lies between them, and a newer state replaces an older one. When its tokens reach `high` its
owner is told, once, so that it can pause the request; when the reader has brought them down to half of that,
the owner is told again.

One reader, one writer, both on the same event loop.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from tokenmux.core.phases import PhaseChanged
from tokenmux.server.front.call_reader import joined_calls
from tokenmux.server.front.generation import PromptDelta, StreamEvent, TokenDelta

_WITH_TOKENS = (TokenDelta, PromptDelta)
"""A tuple, since a union would be made again for every token."""


class EventBuffer:
    """Async iterator over the events put in. When closed it ends, raising the error that it was closed
    with, if any."""

    def __init__(
        self, high: int, on_full: Callable[[], None], on_drained: Callable[[], None], n_choices: int = 1
    ) -> None:
        """`high` is in tokens, at least 1. `n_choices` write into it."""
        self._high = high
        self._has_choices = n_choices > 1
        self._n_open = n_choices
        self._on_full = on_full
        self._on_drained = on_drained
        self._events: deque[StreamEvent] = deque()
        self._n_tokens = 0
        self._full = False
        self._closed = False
        self._error: Exception | None = None
        self._wake = asyncio.Event()

    @property
    def n_tokens(self) -> int:
        """Number of unread tokens."""
        return self._n_tokens

    @property
    def closed(self) -> bool:
        return self._closed

    def put(self, event: StreamEvent) -> None:
        """Append an event. After `close` it is dropped, since it will not be read."""
        if self._closed:
            return
        last = self._events[-1] if self._events else None
        match last, event:
            case _, TokenDelta() if self._has_choices:
                self._put_beside(event)
            case TokenDelta(), TokenDelta() if last.token_ids:  # the echo stays apart
                self._events[-1] = _merged(last, event)
            case PhaseChanged(), PhaseChanged():
                self._events[-1] = event
            case PromptDelta(), PromptDelta():
                self._events[-1] = PromptDelta(
                    last.index,
                    last.token_ids + event.token_ids,
                    last.log_probabilities + event.log_probabilities,
                    last.spellings + event.spellings,
                )
            case _:
                self._events.append(event)
        self._wake.set()
        if isinstance(event, _WITH_TOKENS):
            self._n_tokens += len(event.token_ids)
            if self._n_tokens >= self._high and not self._full:
                self._full = True
                self._on_full()

    def complete(self) -> None:
        """One of the choices has put its last event. The stream ends with the last of them."""
        self._n_open -= 1
        if not self._n_open:
            self.close()

    def close(self, error: Exception | None = None) -> None:
        """End the stream. Without an error the reader first gets what is left; with one, it gets the error
        at once."""
        if self._closed:
            return
        self._closed = True
        self._error = error
        if error is not None:
            self._events.clear()
            self._n_tokens = 0
        self._wake.set()

    def __aiter__(self) -> "EventBuffer":
        return self

    async def __anext__(self) -> StreamEvent:
        while not self._events:
            if self._closed:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        event = self._events.popleft()
        if isinstance(event, _WITH_TOKENS):
            self._n_tokens -= len(event.token_ids)
            if self._full and self._n_tokens <= self._high // 2:
                self._full = False
                if not self._closed:
                    self._on_drained()
        return event

    def _put_beside(self, delta: TokenDelta) -> None:
        """Append a delta of one of several choices, or merge it with what is unread of that choice: so there
        are never more deltas than choices."""
        for place, event in enumerate(self._events):
            if isinstance(event, TokenDelta) and event.token_ids and event.choice == delta.choice:
                self._events[place] = _merged(event, delta)
                return
        self._events.append(delta)


def _merged(first: TokenDelta, second: TokenDelta) -> TokenDelta:
    return TokenDelta(
        first.index,
        first.token_ids + second.token_ids,
        first.text + second.text,
        first.log_probabilities + second.log_probabilities,
        first.choice,
        first.spellings + second.spellings,
        joined_calls(first.calls + second.calls) if second.calls else first.calls,
    )
