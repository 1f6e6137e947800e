"""The front against a bare `grpc.aio` server that sends the same messages: processor time a message.

    python -m benchmarks.front [--quick] [--cache FOLDER]

200 streams get a token each, some times a second, from a process that only draws; the text is English, in
SmolLM2's tokenizer. The bare server writes the same events of the same streams with nothing behind them.
Rounds alternate between the two, and every stream's tokens are compared with those that were drawn. What is
compared is the processor time of the server's own process: whatever the front does between its node's
socket and its client's is in it, the admission of the 200 requests too.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
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
from tokenmux.v1 import inference_pb2

TARGETS = {
    "over_bare_grpc": report.Target(
        source="the front costs at most twice a bare server of the same messages", at_least=0.5
    ),
    "sent_of_bare": report.Target(source="the same messages, hardly any merged", at_least=0.98),
}


async def stream_all(server: Server, token_ids: Sequence[int]) -> Streams:
    """Open all streams at once and read them to their ends, undecoded until the clock has stopped."""
    request = inference_pb2.GenerateRequest(
        model=MODEL,
        token_ids=inference_pb2.TokenIds(ids=range(100, 100 + N_PROMPT)),
        stopping=inference_pb2.Stopping(max_tokens=N_OUTPUT, ignore_end_tokens=True),
    )
    encoded = inference_pb2.GenerateStreamRequest(request=request).SerializeToString()
    async with grpc.aio.insecure_channel(server.target) as channel:
        call = channel.unary_stream("/tokenmux.v1.InferenceService/GenerateStream", None, None)

        async def one() -> tuple[list[bytes], list[float]]:
            messages, at_s = [], []
            async for message in call(encoded):
                messages.append(message)
                at_s.append(time.perf_counter())
            return messages, at_s

        before_s = server.processor_s()
        seen = await asyncio.gather(*(one() for _ in range(N_STREAMS)))
        processor_s = server.processor_s() - before_s
    for messages, _ in seen:
        check(messages, token_ids)
    gaps_s = np.concatenate([np.diff(at_s) for _, at_s in seen])
    return Streams(sum(len(messages) for messages, _ in seen), processor_s, float(np.percentile(gaps_s, 99)))


def check(messages: list[bytes], token_ids: Sequence[int]) -> None:
    """Raise AssertionError if a stream has other tokens than were drawn, or no end."""
    events = [inference_pb2.GenerateStreamResponse.FromString(message) for message in messages]
    tokens = [token for event in events for token in event.tokens.token_ids]
    expected = [token_ids[i % len(token_ids)] for i in range(N_OUTPUT)]
    if tokens != expected or events[-1].WhichOneof("event") != "finish_info":
        raise AssertionError(f"a stream of {len(events)} messages has the wrong tokens: {tokens}")


async def measure(cache: Path, n_rounds: int) -> list[tuple[Streams, Streams]]:
    """Pairs of a round of the front and one of the bare server."""
    with served_text(cache) as (folder, ids, detokenizer):
        tokens = [(token, detokenizer.push((token,))) for token in ids]
        own, bare = Server("null_front", (folder, STEP_S, ids)), Server("bare_grpc", (STEP_S, tokens))
        return await rounds(lambda server: stream_all(server, ids), own, bare, n_rounds)


def main() -> None:
    Comparison("front", "front", "message", "over_bare_grpc", "sent_of_bare", TARGETS).run(__doc__, measure)


if __name__ == "__main__":
    main()
