"""A server with the dialect, a client of it, and the smallest requests."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.server.harness import Served, serving
from tests.server.scripted_models import FakeEntry
from tokenmux.server.http_api.http_server import HttpTransport

CHAT = {"model": "letters", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
TEXT = {"model": "letters", "prompt": "a", "max_tokens": 3}


@asynccontextmanager
async def http(
    *entries: FakeEntry, transport: HttpTransport | None = None, **options: Any
) -> AsyncIterator[tuple[Served, httpx.AsyncClient]]:
    """A server with the dialect, and a client of it."""
    async with (
        serving(*entries, http=transport or HttpTransport(), **options) as served,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.http_port}", timeout=10) as client,
    ):
        yield served, client


async def nothing_lives(served: Served) -> None:
    async with asyncio.timeout(5):
        while served.front.n_live:  # noqa: ASYNC110 - nothing tells when the last has ended
            await asyncio.sleep(0.01)


def events(text: str) -> tuple[list[Any], list[str]]:
    """The documents and the comments of a stream."""
    lines = [line for line in text.split("\n\n") if line]
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    comments = [line.removeprefix(": ") for line in lines if line.startswith(": ")]
    assert len(data) + len(comments) == len(lines)
    return [one if one == "[DONE]" else json.loads(one) for one in data], comments
