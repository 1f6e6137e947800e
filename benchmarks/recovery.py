"""How soon the streams of a killed executor go on: on another device, and on the process that replaces it.

    python -m benchmarks.recovery [--quick] [--cache FOLDER]

Streams of SmolLM2-135M run, and the executor that carries them is killed (SIGKILL). Counted is the time from
there to each stream's next token, at the client.

- `other_device_extra_s`: a pool of two devices, of whose streams some or all are on the one that dies: how
  much later than a token usually comes.
- `first_token_after_kill_s`: a pool of one device, with the process in reserve that a node keeps.
- `without_reserve_s`: the same when the reserve is gone, too. Broken down: until the process is started
  (spawn), until it copies weights (import, memory of the device, mapping), the copy beside which the model is
  bound, the step that computes the streams' KV again (replay), and the way of its tokens to the client.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from benchmarks import arguments, report, server_processes
from benchmarks.smollm2_pool import MODEL, Smollm2Pool, random_prompt, smollm2_pool
from benchmarks.streams import Seen, stream_into

N_STREAMS, N_PROMPT, N_OUTPUT = 4, 32, 96
RUNNING_TOKENS = 12
"""Every stream has this many tokens before the kill."""
RESERVE_S = 60.0
"""Until a node has a process in reserve."""
PARTS = ("spawn", "import", "weights", "replay", "client")
TARGETS = {
    "other_device_extra_s": report.Target(source="another device goes on", at_most=1.0),
    "first_token_after_kill_s": report.Target(source="a replacement goes on", at_most=5.0),
}


@dataclass(frozen=True, slots=True)
class Recovery:
    """One kill."""

    next_tokens_s: tuple[float, ...]
    """From the kill to the next token, of each stream that stood still, the shortest first."""
    usual_s: float
    """Between two tokens of a stream before."""
    parts_s: Mapping[str, float]


async def one_kill(pool: Smollm2Pool, seed: int, *, with_reserve: bool) -> Recovery:
    """Run streams, kill the executor that carries them, read them to their ends."""
    loop = asyncio.get_running_loop()
    seen = [Seen() for _ in range(N_STREAMS)]
    streams = [
        asyncio.create_task(
            stream_into(one, pool.client, MODEL, random_prompt(N_STREAMS * seed + i, N_PROMPT), N_OUTPUT)
        )
        for i, one in enumerate(seen)
    ]
    while min(len(one.tokens) for one in seen) < RUNNING_TOKENS:
        await asyncio.sleep(0.01)
        raise_failed(streams)
    if not with_reserve:
        reserve = idlest(server_processes.find("executor"))
        reserve.kill()
        await asyncio.sleep(0.5)
    victim = await asyncio.to_thread(busiest, server_processes.find("executor"))
    before = {process.pid for process in server_processes.find("executor")}
    n_before = [len(one.tokens) for one in seen]
    kill_s, kill_epoch_s = loop.time(), time.time()
    victim.kill()
    await asyncio.sleep(0.3)
    while min(len(one.tokens) for one in seen) < max(n_before) + 3:
        await asyncio.sleep(0.05)
        raise_failed(streams)
    started = [p.create_time() for p in server_processes.find("executor") if p.pid not in before]
    await asyncio.gather(*streams)
    if any(len(one.tokens) != N_OUTPUT for one in seen):
        raise AssertionError("a stream lost tokens")
    usual_s = median(
        (one.arrived_s[RUNNING_TOKENS - 1] - one.arrived_s[2]) / (RUNNING_TOKENS - 3) for one in seen
    )
    waits_s = sorted(next(at for at in one.arrived_s if at > kill_s + 0.02) - kill_s for one in seen)
    stood_s = tuple(wait_s for wait_s in waits_s if wait_s > 3 * usual_s) or tuple(waits_s)
    document = json.loads((await pool.client.pool.trace()).chrome_trace)
    spawn_s = max(0.0, min(started, default=kill_epoch_s) - kill_epoch_s)
    return Recovery(stood_s, usual_s, parts_of(document, kill_s, kill_s + waits_s[0], spawn_s))


def parts_of(
    document: Mapping[str, list[dict[str, object]]], kill_s: float, token_s: float, spawn_s: float
) -> dict[str, float]:
    """What the time from the kill to the first token went to, from a trace of the pool."""
    spans = [
        (float(str(event["ts"])) / 1e6, float(str(event["dur"])) / 1e6, event.get("args"))
        for event in document["traceEvents"]
        if event.get("ph") == "X" and float(str(event["ts"])) / 1e6 > kill_s
    ]
    weights = min(
        ((at, took) for at, took, args in spans if isinstance(args, dict) and "bytes" in args), default=None
    )
    steps = [(at, took) for at, took, args in spans if isinstance(args, dict) and "prefill_tokens" in args]
    step_s, step_took_s = min(steps)
    begun_s, took_s = weights if weights is not None and weights[0] < step_s else (step_s, 0.0)
    return {
        "spawn": spawn_s,
        "import": begun_s - kill_s - spawn_s,
        "weights": took_s,
        "replay": step_s + step_took_s - begun_s - took_s,
        "client": token_s - step_s - step_took_s,
    }


def busiest(processes: list[psutil.Process]) -> psutil.Process:
    """The process that computes most within a moment. Blocks for it."""
    before = {process.pid: sum(process.cpu_times()[:2]) for process in processes}
    time.sleep(0.3)
    return max(processes, key=lambda process: sum(process.cpu_times()[:2]) - before[process.pid])


def idlest(processes: list[psutil.Process]) -> psutil.Process:
    """The process that has computed least since it began: it has loaded its libraries and nothing else."""
    return min(processes, key=lambda process: sum(process.cpu_times()[:2]))


def raise_failed(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


async def until_reserve(n_devices: int) -> bool:
    """Wait until there is an executor in reserve beside those of devices. False if there is none in time."""
    end_s = time.monotonic() + RESERVE_S
    while time.monotonic() < end_s:
        executors = server_processes.find("executor")
        if len(executors) > n_devices:
            await asyncio.sleep(8.0)  # its libraries
            return True
        await asyncio.sleep(0.5)
    return False


async def kills(cache: Path, n_devices: int, n_kills: int, *, with_reserve: bool) -> list[Recovery]:
    """Kills on one server, one after the other."""
    async with smollm2_pool(cache, n_devices=n_devices) as pool:
        await pool.client.generate(MODEL, random_prompt(0, N_PROMPT), max_tokens=4)
        found = []
        for i in range(n_kills):
            if not await until_reserve(n_devices):
                raise TimeoutError("no executor is kept in reserve")
            found.append(await one_kill(pool, i, with_reserve=with_reserve))
        return found


def main() -> None:
    options = arguments.read_arguments(__doc__, quick="a look: one kill of each kind")
    n_kills = 1 if options.quick else 3
    other = asyncio.run(kills(options.cache, 2, n_kills, with_reserve=True))
    same = asyncio.run(kills(options.cache, 1, n_kills, with_reserve=True))
    anew = asyncio.run(kills(options.cache, 1, n_kills, with_reserve=False))
    metrics = report.spread("other_device_extra_s", [r.next_tokens_s[0] - r.usual_s for r in other])
    metrics |= report.spread("first_token_after_kill_s", [r.next_tokens_s[0] for r in same])
    metrics |= report.spread("without_reserve_s", [r.next_tokens_s[0] for r in anew])
    rows: list[list[object]] = []
    for name, found in (("other_device", other), ("replacement", same), ("without_reserve", anew)):
        parts = {part: median(r.parts_s[part] for r in found) for part in PARTS}
        metrics |= {f"{name}_{part}_s": seconds for part, seconds in parts.items()}
        metrics[f"{name}_last_stream_s"] = median(r.next_tokens_s[-1] for r in found)
        first_s, last_s = median(r.next_tokens_s[0] for r in found), metrics[f"{name}_last_stream_s"]
        rows.append([name.replace("_", " "), len(found), first_s, last_s, *parts.values()])
    report.table(
        "Seconds from the death of an executor to the next token of its streams",
        ["goes on", "kills", "first", "last stream", *PARTS],
        rows,
    )
    report.finish("recovery", metrics, TARGETS)


if __name__ == "__main__":
    main()
