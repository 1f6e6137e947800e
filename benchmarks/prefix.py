"""What the prefix cache saves, and what it costs where nothing is shared.

    python -m benchmarks.prefix [--quick] [--cache FOLDER]

Two servers of SmolLM2-135M on a virtual device each, one with the cache and one without; rounds alternate
between them, and each ratio is taken within a round.

- `second_over_first`: two requests, one after the other, share a prompt of 1,000 tokens and have 8 of their
  own: the time to the first token of the second over that of the first.
- `unshared_over_off`: 4 requests at a time whose prompts share nothing: requests per second with the cache
  over those without. The first rounds fill the memory, so that in later ones cells make way.
- `unshared_processor_over_off`: processor time of the server's processes without the cache over that with it,
  for the same requests. Others on the machine change it less than the time on the wall.
- `unshared_launches_over_off`: what executors are told to do, counted on virtual time by
  `benchmarks.prefix_counted`, with what the node itself needs.
"""

import asyncio
import time
from pathlib import Path

from benchmarks import arguments, prefix_counted, report, server_processes
from benchmarks.smollm2_pool import MODEL, Smollm2Pool, random_prompt, smollm2_pool

N_SHARED, N_OWN = 1000, 8
N_UNSHARED, N_TOGETHER, N_OUTPUT = 400, 4, 16
SOURCE = "the project's goal for its prefix cache"
TARGETS = {
    "second_over_first": report.Target(SOURCE, at_most=0.2),
    "unshared_over_off": report.Target(SOURCE, at_least=0.99),
    "unshared_processor_over_off": report.Target(SOURCE, at_least=0.99),
    "unshared_launches_over_off": report.Target("the same steps, copies and swaps", at_least=1, at_most=1),
}


async def first_token_s(pool: Smollm2Pool, prompt: tuple[int, ...]) -> float:
    """Seconds until the answer of one token is there."""
    began_s = time.perf_counter()
    await pool.client.generate(MODEL, prompt, max_tokens=1)
    return time.perf_counter() - began_s


async def second_over_first(pool: Smollm2Pool, seed: int) -> tuple[float, float]:
    """Times to the first token of two requests with the same beginning, in seconds."""
    shared = random_prompt(10_000 + seed, N_SHARED)
    own = [random_prompt(20_000 + 2 * seed + i, N_OWN) for i in range(2)]
    first_s = await first_token_s(pool, shared + own[0])
    return first_s, await first_token_s(pool, shared + own[1])


async def requests_per_s(pool: Smollm2Pool, seed: int, n: int) -> float:
    """Serve `n` requests that share nothing, some at a time."""
    slots = asyncio.Semaphore(N_TOGETHER)

    async def one(number: int) -> None:
        async with slots:
            prompt = random_prompt(1_000_000 + 1000 * seed + number, N_UNSHARED)
            await pool.client.generate(MODEL, prompt, max_tokens=N_OUTPUT, min_tokens=N_OUTPUT)

    began_s = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(n)))
    return n / (time.perf_counter() - began_s)


async def unshared(pool: Smollm2Pool, seed: int, n: int) -> tuple[float, float]:
    """Requests per second, and seconds of processor time of one. Other servers do nothing meanwhile."""
    before_s = sum(server_processes.processor_s().values())
    rate = await requests_per_s(pool, seed, n)
    return rate, (sum(server_processes.processor_s().values()) - before_s) / n


async def measure(cache: Path, *, quick: bool) -> dict[str, float]:
    n_rounds, n_requests = (3, 4) if quick else (15, 12)
    ratios, rates, processor, seconds = [], [], [], []
    async with smollm2_pool(cache, prefix_cache=True) as on, smollm2_pool(cache) as off:
        for pool in (on, off):
            await second_over_first(pool, seed=-1)
            await requests_per_s(pool, -1, N_TOGETHER)
        for seed in range(n_rounds):
            times_s = await second_over_first(on, seed)
            seconds.append(times_s)
            ratios.append(times_s[1] / times_s[0])
            order = (on, off) if seed % 2 else (off, on)
            found = {id(pool): await unshared(pool, seed, n_requests) for pool in order}
            rates.append(found[id(on)][0] / found[id(off)][0])
            processor.append(found[id(off)][1] / found[id(on)][1])
    firsts, seconds_s = zip(*seconds, strict=True)
    return {
        **report.spread("second_over_first", ratios),
        **report.spread("unshared_over_off", rates),
        **report.spread("unshared_processor_over_off", processor),
        **report.spread("first_s", firsts),
        **report.spread("second_s", seconds_s),
    }


def main() -> None:
    options = arguments.read_arguments(__doc__, quick="fewer rounds")
    metrics = prefix_counted.measure(n_rounds=3 if options.quick else 15)
    metrics |= asyncio.run(measure(options.cache, quick=options.quick))
    report.table("Prefix cache", ("metric", "value"), list(metrics.items()))
    report.finish("prefix", metrics, TARGETS)


if __name__ == "__main__":
    main()
