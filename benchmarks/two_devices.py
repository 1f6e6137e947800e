"""Two virtual devices against one on this machine: tokens per second, and tokens on time, as they are.

Two models with four streams each, all at once; the same streams on a server with one device and on one with
two. Virtual devices compute on this machine's cores: where those are busy anyway, two do not help.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import report
from benchmarks.smollm2_pool import Smollm2Pool, random_prompt, smollm2_pool
from tokenmux.client import Finish

N_STREAMS, N_PROMPT, N_OUTPUT = 8, 32, 48
TTFT_S, TPOT_S = 2.0, 0.1


@dataclass(frozen=True, slots=True)
class Served:
    """What all streams of a round got."""

    tokens_per_s: float
    on_time: float
    """Share of the tokens."""


async def measure(cache: Path, n_rounds: int) -> list[tuple[Served, Served]]:
    """Pairs of a round on one device and one on two, both servers being there. The first is dropped."""
    async with (
        smollm2_pool(cache, n_models=2) as one,
        smollm2_pool(cache, n_devices=2, n_models=2) as two,
    ):
        pairs = [(await one_round(one, i), await one_round(two, i)) for i in range(n_rounds + 1)]
    return pairs[1:]


async def one_round(pool: Smollm2Pool, seed: int) -> Served:
    loop = asyncio.get_running_loop()

    async def stream(index: int) -> Finish:
        prompt = random_prompt(N_STREAMS * seed + index, N_PROMPT)
        completion = await pool.client.generate(
            pool.names[index % len(pool.names)],
            prompt,
            max_tokens=N_OUTPUT,
            ignore_end_tokens=True,
            ttft_s=TTFT_S,
            tpot_s=TPOT_S,
        )
        return completion.finish

    began_s = loop.time()
    finishes = await asyncio.gather(*(stream(index) for index in range(N_STREAMS)))
    n_tokens = sum(finish.n_completion_tokens for finish in finishes)
    on_time = sum(finish.n_tokens_on_time for finish in finishes) / n_tokens
    return Served(n_tokens / (loop.time() - began_s), on_time)


def metrics_of(pairs: list[tuple[Served, Served]]) -> dict[str, float]:
    """Medians, and a table for people."""
    metrics = report.spread(
        "two_over_one_device", [two.tokens_per_s / one.tokens_per_s for one, two in pairs]
    )
    rows: list[list[object]] = []
    for name, taken in (
        ("one_device", [one for one, _ in pairs]),
        ("two_devices", [two for _, two in pairs]),
    ):
        metrics[f"{name}_tokens_per_s"] = median(served.tokens_per_s for served in taken)
        metrics[f"{name}_on_time"] = median(served.on_time for served in taken)
        rows.append([name.replace("_", " "), metrics[f"{name}_tokens_per_s"], metrics[f"{name}_on_time"]])
    report.table(
        f"{N_STREAMS} streams of two models of SmolLM2-135M on this machine",
        ["pool", "tokens/s", "tokens on time"],
        rows,
    )
    return metrics
