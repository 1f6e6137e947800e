"""What output that obeys a JSON schema costs, and whether others notice when a large schema is compiled.

    python -m benchmarks.structured [--quick] [--cache FOLDER]

`structured_over_free` is the throughput of eight streams of SmolLM2-135M whose output obeys a schema, over
that of the same streams without one; both draw with temperature 1 and are as long. `ttft_beside_over_quiet`
is the median TTFT of short requests without a schema, one after another, while schemas of 100 kB that are new
to the server are sent all the time, over that while none is.
"""

import asyncio
import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from statistics import median

from benchmarks import arguments, report
from benchmarks.smollm2_pool import MODEL, random_prompt, smollm2_pool
from tokenmux.client import AsyncClient

N_STREAMS, N_PROMPT, N_OUTPUT = 8, 64, 96
N_PROPERTIES = 90
TARGETS = {
    "structured_over_free": report.Target(source="issue 12", at_least=0.9),
    "ttft_beside_over_quiet": report.Target(source="others do not notice", at_most=1.5),
}
SCHEMA: Mapping[str, object] = {
    "type": "array",
    "minItems": 100,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    },
}
"""A hundred items are more than fit into the output: every stream is as long as a free one."""


def large_schema(number: int) -> str:
    """About 100 kB, and different for each number."""
    inner = {f"q{i}": {"type": ["string", "integer", "null"]} for i in range(20)}
    entry = {"type": "object", "properties": inner, "required": list(inner)[:10]}
    return json.dumps(
        {"type": "object", "properties": {f"p{number}_{i}": entry for i in range(N_PROPERTIES)}}
    )


async def tokens_per_s(client: AsyncClient, seed: int, options: Mapping[str, object]) -> float:
    """Throughput of eight streams that begin together."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    done = await asyncio.gather(
        *(
            client.generate(
                MODEL,
                random_prompt(seed + i, N_PROMPT),
                max_tokens=N_OUTPUT,
                temperature=1.0,
                seed=i,
                **options,  # type: ignore[arg-type]
            )
            for i in range(N_STREAMS)
        )
    )
    if any(len(one.token_ids) != N_OUTPUT for one in done):
        raise AssertionError("a stream ended early")
    return N_STREAMS * N_OUTPUT / (loop.time() - began_s)


async def ttfts_s(client: AsyncClient, n: int) -> list[float]:
    """The TTFT of short requests, one after another."""
    found = []
    for seed in range(n):
        one = await client.generate(MODEL, random_prompt(seed, N_PROMPT), max_tokens=2)
        found.append(one.finish.ttft_s)
        await asyncio.sleep(0.05)
    return found


async def send_schemas(client: AsyncClient, numbers: "count[int]", spent: list[int]) -> None:
    """Send new schemas until cancelled."""
    while True:
        await client.generate(
            MODEL, random_prompt(1, 8), max_tokens=1, temperature=1.0, json_schema=large_schema(next(numbers))
        )
        spent.append(1)


async def measure(cache: Path, n_rounds: int, n_short: int) -> dict[str, float]:
    ratios: list[float] = []
    quiet: list[float] = []
    beside: list[float] = []
    structured: list[float] = []
    free: list[float] = []
    spent: list[int] = []
    numbers = count()
    async with smollm2_pool(cache) as pool:
        client = pool.client
        await tokens_per_s(client, 0, {"ignore_end_tokens": True})
        await tokens_per_s(client, 0, {"json_schema": SCHEMA})
        for i in range(n_rounds):
            free.append(await tokens_per_s(client, 100 * i, {"ignore_end_tokens": True}))
            structured.append(await tokens_per_s(client, 100 * i, {"json_schema": SCHEMA}))
            ratios.append(structured[-1] / free[-1])
            quiet += await ttfts_s(client, n_short)
            sender = asyncio.create_task(send_schemas(client, numbers, spent))
            beside += await ttfts_s(client, n_short)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
    metrics = report.spread("structured_over_free", ratios)
    metrics |= report.spread("free_tokens_per_s", free)
    metrics |= report.spread("structured_tokens_per_s", structured)
    metrics |= report.spread("ttft_quiet_ms", [1e3 * one for one in quiet])
    metrics |= report.spread("ttft_beside_ms", [1e3 * one for one in beside])
    metrics["ttft_beside_over_quiet"] = median(beside) / median(quiet)
    metrics["schemas_compiled"] = len(spent)
    return metrics


def main() -> None:
    options = arguments.read_arguments(__doc__, quick="a look: one round")
    metrics = asyncio.run(measure(options.cache, *((1, 10) if options.quick else (5, 20))))
    report.table(
        f"{N_STREAMS} streams of {N_OUTPUT} tokens, and short requests beside large schemas",
        ["", "value"],
        [[name.replace("_", " "), value] for name, value in metrics.items()],
    )
    report.finish("structured", metrics, TARGETS)


if __name__ == "__main__":
    main()
