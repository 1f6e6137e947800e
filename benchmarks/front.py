"""The front against a bare `grpc.aio` server that sends the same messages: processor time a message.

    python -m benchmarks.front [--quick] [--cache FOLDER]

200 streams get a token each, some times a second, from a process that only draws; the text is English, in
SmolLM2's tokenizer. The bare server writes the same events of the same streams with nothing behind them.
Rounds alternate between the two, and every stream's tokens are compared with those that were drawn. What is
compared is the processor time of the server's own process: whatever the front does between its node's
socket and its client's is in it, the admission of the 200 requests too.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Self

import grpc
import numpy as np
import psutil

from benchmarks import report
from tokenmux.demo.real_checkpoint import obtain_demo_checkpoint
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.v1 import inference_pb2

MODEL = "smollm2"
N_STREAMS, N_PROMPT, N_OUTPUT = 200, 32, 80
STEP_S = 0.06
"""3,300 messages a second, a third of what one process can send: hardly any deltas are merged."""
TEXT = (
    "The quick brown fox jumps over the lazy dog, while seven wizards, who had never seen a fox before, "
    "wondered aloud whether it would return tomorrow; nobody answered, and the evening went on as usual."
)
TARGETS = {
    "over_bare_grpc": report.Target(
        source="the front costs at most twice a bare server of the same messages", at_least=0.5
    ),
    "sent_of_bare": report.Target(source="the same messages, hardly any merged", at_least=0.98),
}


class Server:
    """A server in a process of its own, which prints its port; use it as a context."""

    def __init__(self, module: str, arguments: tuple[object, ...]) -> None:
        """`module` has a function `serve` that takes these arguments."""
        code = f"from benchmarks.{module} import serve; serve{arguments!r}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.target = f"127.0.0.1:{int(self._process.stdout.readline())}"
        self._measured = psutil.Process(self._process.pid)

    def processor_s(self) -> float:
        """Processor time of this process alone so far."""
        times = self._measured.cpu_times()
        return times.user + times.system

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        with self._process:  # closes its input, which ends it
            pass


@dataclass(frozen=True, slots=True)
class Streams:
    """What all streams of a round took."""

    n_messages: int
    processor_s: float
    gap_p99_s: float
    """Between two messages of a stream."""

    @property
    def us_per_message(self) -> float:
        return 1e6 * self.processor_s / self.n_messages


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
    """Pairs of a round of the front and one of the bare server. The first pair is dropped."""
    with tempfile.TemporaryDirectory(prefix="tokenmux-front-") as folder:
        entry = Catalogue(Path(folder)).register_folder(MODEL, obtain_demo_checkpoint(cache))
        ids, detokenizer = entry.encoder().encode(TEXT), entry.tokenizer().detokenizer()
        tokens = [(token, detokenizer.push((token,))) for token in ids]
        with (
            Server("null_front", (folder, STEP_S, ids)) as front,
            Server("bare_grpc", (STEP_S, tokens)) as bare,
        ):
            pairs = [(await stream_all(front, ids), await stream_all(bare, ids)) for _ in range(n_rounds + 1)]
    return pairs[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a look: a third of the rounds")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path.home() / ".cache" / "tokenmux",
        help="where the model is kept (default: %(default)s)",
    )
    options = parser.parse_args()
    pairs = asyncio.run(measure(options.cache, 3 if options.quick else 8))
    metrics = report.spread(
        "over_bare_grpc", [bare.us_per_message / own.us_per_message for own, bare in pairs]
    )
    metrics["sent_of_bare"] = median(own.n_messages / bare.n_messages for own, bare in pairs)
    rows: list[list[object]] = []
    for name, taken in (("front", [own for own, _ in pairs]), ("bare", [bare for _, bare in pairs])):
        metrics[f"{name}_us_per_message"] = median(streams.us_per_message for streams in taken)
        metrics[f"{name}_gap_ms_p99"] = 1e3 * median(streams.gap_p99_s for streams in taken)
        rows.append(
            [
                name,
                median(streams.n_messages for streams in taken),
                metrics[f"{name}_us_per_message"],
                metrics[f"{name}_gap_ms_p99"],
            ]
        )
    low, middle, high = (f"{metrics[f'over_bare_grpc{end}']:.2f}" for end in ("_p20", "", "_p80"))
    report.table(
        f"{N_STREAMS} streams x {1 / STEP_S:.0f}/s: {middle} ({low} to {high}) of a bare server",
        ["server", "messages", "us a message", "gap p99 ms"],
        rows,
    )
    report.finish("front", metrics, TARGETS)


if __name__ == "__main__":
    main()
