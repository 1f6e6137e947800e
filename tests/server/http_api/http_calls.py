"""A server with the dialect, a client of it, and the smallest requests."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.server.harness import Served, serving
from tests.server.scripted_models import FakeEntry
from tokenmux.core.request import FinishReason
from tokenmux.messages.commands import Submit
from tokenmux.messages.reports import Finished, Tokens
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
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.http_port}", timeout=60) as client,
    ):
        yield served, client


def usage_of(n_prompt: int, n_completion: int, n_cached: int = 0) -> dict[str, Any]:
    """The usage of an answer."""
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": n_cached},
    }


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


async def answer_with(served: Served, output: str) -> Submit:
    """Answer the next request with a text, whose letters are tokens, three at a time."""
    submit = await served.hub.next(Submit)
    for at in range(0, len(output), 3):
        tokens = tuple(map(ord, output[at : at + 3]))
        served.hub.post(Tokens(submit.request.id, at, tokens, 100.0))
        await asyncio.sleep(0)
    served.hub.post(Finished(submit.request.id, FinishReason.STOP, 100.0))
    return submit
