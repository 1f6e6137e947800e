"""How long a stream stands still when it moves to another device in mid-generation.

    python -m benchmarks.migration [--quick] [--cache FOLDER]

Streams of SmolLM2-135M run on one of two virtual devices, which is then drained: all of them move. A stream's
exposed pause is its longest gap between two tokens after that, beyond its usual one. It has to wait for the
copies that bring it over (its KV out and in, the weights too the first time) and for a step that is in flight
where it arrives; `pause_over_bound` compares the pause with those, as a trace of the pool shows them within
the gap. `gap_over_bound` is the strict reading: the whole gap, with the step of the stream's own next token.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks import arguments, report
from benchmarks.smollm2_pool import MODEL, Smollm2Pool, random_prompt, smollm2_pool
from benchmarks.streams import Seen, stream_into

N_STREAMS, N_PROMPT, N_OUTPUT = 3, 256, 96
RUNNING_TOKENS = 10
"""Every stream has this many tokens before it moves."""
TARGETS = {
    "pause_over_bound": report.Target(source="a move waits for its copies and one step", at_most=1.2),
}


@dataclass(frozen=True, slots=True)
class Span:
    """An operation of a trace: a copy, or a step of so many iterations."""

    start_s: float
    end_s: float
    instance: int
    iterations: int
    """0 for a copy."""


@dataclass(frozen=True, slots=True)
class Move:
    """One stream's move."""

    gap_s: float
    """Between two tokens."""
    bound_s: float
    token_s: float
    """The usual time between two tokens, before the move."""

    @property
    def pause_s(self) -> float:
        return max(0.0, self.gap_s - self.token_s)


def spans_of(document: Mapping[str, list[dict[str, object]]]) -> list[Span]:
    """Copies and steps of a Chrome trace of the pool."""
    spans = []
    for event in document["traceEvents"]:
        details = event.get("args")
        if event.get("ph") == "X" and isinstance(details, dict):
            start_s, took_s = float(str(event["ts"])) / 1e6, float(str(event["dur"])) / 1e6
            iterations = int(details.get("iterations", 0))
            spans.append(Span(start_s, start_s + took_s, int(str(event["pid"])), iterations))
    return spans


def bound_of(spans: Iterable[Span], from_s: float, to_s: float, target: int) -> float:
    """Seconds of that time in which copies ran, and of one iteration of the last step that the target began
    within it."""
    spans = list(spans)
    copied_s, reached_s = 0.0, from_s
    for copy in sorted((s for s in spans if not s.iterations), key=lambda s: s.start_s):
        begin_s, end_s = max(copy.start_s, reached_s), min(copy.end_s, to_s)
        copied_s += max(0.0, end_s - begin_s)
        reached_s = max(reached_s, end_s)
    steps = [
        s for s in spans if s.iterations and s.instance == target and s.start_s < to_s and s.end_s > from_s
    ]
    step_s = max(((s.end_s - s.start_s) / s.iterations for s in steps), default=0.0)
    return copied_s + step_s


async def drain_once(pool: Smollm2Pool, seed: int) -> list[Move]:
    """Run streams, drain the device that has them, and let it serve again when they have ended."""
    seen = [Seen() for _ in range(N_STREAMS)]
    streams = [
        asyncio.create_task(
            stream_into(one, pool.client, MODEL, random_prompt(N_STREAMS * seed + i, N_PROMPT), N_OUTPUT)
        )
        for i, one in enumerate(seen)
    ]
    while min(len(one.tokens) for one in seen) < RUNNING_TOKENS:
        await asyncio.sleep(0.01)
        if any(task.done() for task in streams):
            await asyncio.gather(*streams)
    devices = (await pool.client.pool.status()).instances
    source = max(devices, key=lambda device: device.n_requests)
    (target,) = (device.id for device in devices if device.id != source.id)
    drain_s = asyncio.get_running_loop().time()
    await pool.client.pool.drain_device(source.id)
    await asyncio.gather(*streams)
    if any(len(one.tokens) != N_OUTPUT for one in seen):
        raise AssertionError("a stream lost tokens")
    spans = spans_of(json.loads((await pool.client.pool.trace()).chrome_trace))
    await pool.client.pool.drain_device(source.id, undo=True)
    moves = []
    for one in seen:
        gaps = [(after - before, before, after) for before, after in pairwise(one.arrived_s)]
        gap_s, from_s, to_s = max(gap for gap in gaps if gap[2] > drain_s)
        token_s = median(gap for gap, _, after in gaps if after <= drain_s)
        moves.append(Move(gap_s, bound_of(spans, from_s, to_s, target), token_s))
    return moves


async def measure(cache: Path, n_moves: int) -> list[Move]:
    """Drain one device, then the other, and so on. The first move, which brings the weights, is dropped."""
    moves: list[Move] = []
    async with smollm2_pool(cache, n_devices=2) as pool:
        for i in range(n_moves + 1):
            found = await drain_once(pool, i)
            moves += found if i else []
    return moves


def main() -> None:
    options = arguments.read_arguments(__doc__, quick="a look: two moves of each stream")
    moves = asyncio.run(measure(options.cache, 2 if options.quick else 8))
    metrics = report.spread("pause_over_bound", [move.pause_s / move.bound_s for move in moves])
    metrics |= report.spread("gap_over_bound", [move.gap_s / move.bound_s for move in moves])
    metrics |= report.spread("pause_ms", [1e3 * move.pause_s for move in moves])
    metrics |= report.spread("bound_ms", [1e3 * move.bound_s for move in moves])
    metrics |= report.spread("token_ms", [1e3 * move.token_s for move in moves])
    report.table(
        f"{len(moves)} moves of streams of {N_PROMPT} tokens and more between two devices",
        ["", "median", "p20", "p80"],
        [
            [name.replace("_", " "), metrics[name], metrics[f"{name}_p20"], metrics[f"{name}_p80"]]
            for name in ("pause_ms", "bound_ms", "pause_over_bound", "gap_over_bound", "token_ms")
        ],
    )
    report.finish("migration", metrics, TARGETS)


if __name__ == "__main__":
    main()
