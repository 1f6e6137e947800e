"""OpenAI's dialect against a bare starlette server that streams the same chunks: processor time a chunk.

    python -m benchmarks.http_front [--quick] [--cache FOLDER]

As `benchmarks.front` is for gRPC, with the same streams and the same text. The bare server encodes each chunk
as the dialect does, so that what is compared is all the rest: admission, the node's reports, text, buffers,
comments, and noticing clients that leave. Clients read sockets and do not parse until the clock has stopped.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.streaming_servers import (
    MODEL,
    N_OUTPUT,
    N_PROMPT,
    N_STREAMS,
    STEP_S,
    Comparison,
    Server,
    Streams,
    rounds,
    served_text,
)
from tokenmux.server.front.model_text import OutputText

TARGETS = {
    "over_bare_http": report.Target(
        source="the dialect costs at most twice a bare server of the same chunks", at_least=0.5
    ),
    "sent_of_bare_http": report.Target(source="the same chunks, hardly any merged", at_least=0.95),
}


async def read_stream(target: str, request: bytes) -> tuple[bytes, list[float]]:
    """All bytes of one stream, and when they came."""
    host, _, port = target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    received, at_s = bytearray(), []
    while piece := await reader.read(1 << 16):
        received += piece
        at_s.append(time.perf_counter())
    writer.close()
    return bytes(received), at_s


async def stream_all(server: Server, expected: str) -> Streams:
    """Open all streams at once and read them to their ends."""
    body = json.dumps(
        {
            "model": MODEL,
            "prompt": list(range(100, 100 + N_PROMPT)),
            "max_tokens": N_OUTPUT,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
    )
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {server.target}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    request = (head + body).encode()
    before_s = server.processor_s()
    seen = await asyncio.gather(*(read_stream(server.target, request) for _ in range(N_STREAMS)))
    processor_s = server.processor_s() - before_s
    n_chunks = sum(check(received, expected) for received, _ in seen)
    gaps_s = np.concatenate([np.diff(at_s) for _, at_s in seen])
    return Streams(n_chunks, processor_s, float(np.percentile(gaps_s, 99)))


def check(received: bytes, expected: str) -> int:
    """The number of chunks of a stream. Raises AssertionError if it has another text than was drawn."""
    lines = [line for line in received.split(b"\n") if line.startswith(b"data: ")]
    if lines[-1].strip() != b"data: [DONE]":
        raise AssertionError(f"a stream of {len(lines)} chunks has no end: {received[:500]!r}")
    chunks = [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    if text != expected:
        raise AssertionError(f"a stream has the wrong text: {text!r}, not {expected!r}")
    return len(lines)


async def measure(cache: Path, n_rounds: int) -> list[tuple[Streams, Streams]]:
    """Pairs of a round of the dialect and one of the bare server."""
    with served_text(cache) as (folder, ids, detokenizer):
        texts = pieces(ids, detokenizer)
        expected = "".join(texts)
        own, bare = Server("null_front", (folder, STEP_S, ids, True)), Server("bare_http", (STEP_S, texts))
        return await rounds(lambda server: stream_all(server, expected), own, bare, n_rounds)


def pieces(ids: Sequence[int], detokenizer: OutputText) -> list[str]:
    """The text of each token of an output, the last one with what is held back."""
    texts = [detokenizer.push((ids[index % len(ids)],)) for index in range(N_OUTPUT)]
    return [*texts[:-1], texts[-1] + detokenizer.finish()]


def main() -> None:
    Comparison("http_front", "dialect", "chunk", "over_bare_http", "sent_of_bare_http", TARGETS).run(
        __doc__, measure
    )


if __name__ == "__main__":
    main()
