"""A stream of server-sent events, which never falls silent for long.

: queued 3 ahead          comments, ignored by clients: what a request waits for
: loading 42%
data: {...}               a chunk of the answer
data: [DONE]
"""

import asyncio
from collections.abc import Sequence

from starlette.types import Send

from tokenmux.core.phases import PhaseChanged, RequestPhase

SILENT_S = 15.0
"""A comment is sent after this long without anything: proxies close connections that are silent, many after
60 s and some after 30."""

EVENT_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would collect the stream otherwise
    (b"x-accel-buffering", b"no"),
)


class EventStream:
    """The body of one answer. Writing waits while the client does not read."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._clock = asyncio.get_running_loop().time
        self._sent_s = self._clock()
        self.started = False

    async def start(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        await self._send(
            {"type": "http.response.start", "status": 200, "headers": [*EVENT_STREAM_HEADERS, *headers]}
        )
        self.started = True

    async def data(self, document: bytes) -> None:
        await self._write(b"data: " + document + b"\n\n")

    async def comment(self, text: str) -> None:
        await self._write(f": {text}\n\n".encode())

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def keep_alive(self) -> None:
        """Send a comment whenever nothing else was sent for `SILENT_S`. Never returns."""
        while True:
            left_s = self._sent_s + SILENT_S - self._clock()
            if left_s > 0 or not self.started:
                await asyncio.sleep(max(left_s, 1.0))
            else:
                await self.comment("still here")

    async def _write(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        self._sent_s = self._clock()


def phase_comment(state: PhaseChanged) -> str | None:
    """What a client may want to know while it waits. None for a request that runs."""
    match state.phase:
        case RequestPhase.QUEUED:
            return f"queued {state.position} ahead"
        case RequestPhase.LOADING:
            return f"loading {state.progress:.0%}"
        case RequestPhase.PAGED_OUT:
            return "paged out"
        case RequestPhase.RUNNING | RequestPhase.PAUSED:
            return None
