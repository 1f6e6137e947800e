"""A bare starlette server that streams the chunks that a front would stream, with nothing behind them."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from benchmarks.steps_of_bare_servers import SharedSteps
from tokenmux.server.http_api.answer_forms import AnswerHead, TextForm
from tokenmux.server.http_api.outputs import OutputPiece
from tokenmux.server.listening import Reservation


class BareStreams:
    """Streams the next piece of a text once a step."""

    def __init__(self, step_s: float, texts: Sequence[str]) -> None:
        """`texts` are the pieces, over and over."""
        self.steps = SharedSteps(step_s)
        self._texts = texts

    async def answer(self, request: Request) -> StreamingResponse:
        return StreamingResponse(self._chunks(await request.json()), media_type="text/event-stream")

    async def _chunks(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        form = TextForm()
        head = AnswerHead("cmpl-0123456789abcdef", int(time.time()), body["model"], False, frozenset())
        for index in range(body["max_tokens"]):
            await self.steps.wait()
            piece = OutputPiece(self._texts[index % len(self._texts)])
            yield b"data: " + form.delta(head, 0, piece) + b"\n\n"
        yield b"data: [DONE]\n\n"


def serve(step_s: float, texts: Sequence[str]) -> None:
    """The program of a process: print the port, and serve until the input ends."""
    asyncio.run(_serve(step_s, texts))


async def _serve(step_s: float, texts: Sequence[str]) -> None:
    streams = BareStreams(step_s, texts)
    app = Starlette(routes=[Route("/v1/completions", streams.answer, methods=["POST"])])
    config = uvicorn.Config(app, http="httptools", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    sockets = Reservation("127.0.0.1:0").handed_over()
    serving = asyncio.create_task(server.serve(sockets))
    stepping = asyncio.create_task(streams.steps.run())
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    stepping.cancel()
    server.should_exit = True
    await serving
