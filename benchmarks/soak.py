"""A server under everything at once, for minutes: what fails, what changes, what grows.

    python -m benchmarks.soak [--quick] [--seconds S]

One real server over twelve tiny models of different families, on a device that holds about a third of them.
Requests stream in and are compared token by token with the same request on an idle server; some are cancelled
in mid-stream. At the same time a model is registered and removed over and over, sources that are not models
and parameters out of bounds are sent, the arena is resized, and monitoring calls of every kind arrive. Time
is cut into windows; every second one has watchers of the status at 20 Hz and the same traffic as the window
before it, so that their cost shows as a ratio.

Memory is the resident set of each process of the server, compared between the middle and the end of the run.
Takes ten minutes by default.
"""

import argparse
import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
import psutil

from benchmarks.report import Target, finish, table
from tokenmux.client import AsyncClient, CallFailed, Completion, Delta, Finish
from tokenmux.demo.process import served
from tokenmux.models.catalogue import tiny

MIB = 1 << 20
GUEST = "guest"
"""The model that is registered and removed."""
PROMPT_LENGTHS = (3, 40, 130)
MAX_TOKENS = 24
REQUESTS_PER_S = 6.0
CANCELLED_SHARE = 0.15
WATCHERS, WATCH_INTERVAL_S = 4, 0.05
ARENAS = (3 * MIB, 5 * MIB)
SOURCE = "nothing is lost, and nobody notices what others do"
TARGETS = {
    "n_internal_or_unknown": Target(SOURCE, at_most=0),
    "n_lost": Target(SOURCE, at_most=0),
    "n_changed_tokens": Target("promise 1: token-exact", at_most=0),
    "front_growth": Target("resident memory at the end over that in the middle", at_most=1.03),
    "node_growth": Target("resident memory at the end over that in the middle", at_most=1.03),
    "swaps_with_watchers_over_without": Target("watching costs the pool nothing", at_most=1.1),
}

BAD_OPTIONS: tuple[dict[str, object], ...] = (
    {"tpot_s": 1e308},
    {"ttft_s": 5e-324},
    {"ttft_s": float("nan")},
    {"temperature": -1.0},
    {"temperature": float("inf")},
    {"top_p": 2.0},
    {"max_tokens": 1 << 30},
    {"min_tokens": 1 << 30},
    {"tenant": "[/b]\x1b]0;x\x07"},
    {"stop_token_ids": [(1 << 31) - 1]},
    {"weight": 1e308},
)


@dataclass(slots=True)
class Tally:
    """Counts of the run's outcomes."""

    codes: Counter[str] = field(default_factory=Counter)
    """Answers by activity and status, as "traffic OK"."""
    complaints: list[str] = field(default_factory=list)
    """The text of every answer that should not have been."""
    n_changed: int = 0
    n_tokens: int = 0

    def took(self, activity: str, status: str) -> None:
        self.codes[f"{activity} {status}"] += 1

    def complain(self, activity: str, error: CallFailed) -> None:
        self.complaints.append(f"{activity}: {error}")

    def count(self, *statuses: str) -> int:
        return sum(n for key, n in self.codes.items() if key.split()[-1] in statuses)


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident bytes of the server's processes at one moment."""

    front: int
    node: int


class Soak:
    """The activities of one run against one server."""

    def __init__(self, client: AsyncClient, address: str, models: list[str], folder: Path) -> None:
        self.client, self.address, self.models, self.folder = client, address, models, folder
        self.tally = Tally()
        self._alone: dict[tuple[str, int], tuple[int, ...]] = {}

    async def learn(self) -> None:
        """Ask every question once, alone."""
        for model in self.models:
            for kind in range(len(PROMPT_LENGTHS)):
                self._alone[model, kind] = (await self._ask(model, kind)).token_ids

    async def window(self, seconds: float, seed: int, *, watched: bool) -> int:
        """Run everything at once for `seconds`. Returns the number of swaps."""
        before = await self._n_swaps()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + seconds
        rng = np.random.default_rng

        async def repeat(
            each: Callable[[np.random.Generator], Coroutine[None, None, None]], pause_s: float, of: int
        ) -> None:
            own = rng([seed, of])
            while loop.time() < until_s:
                await each(own)
                pause = float(own.exponential(pause_s))
                await asyncio.sleep(max(0.0, min(pause, until_s - loop.time())))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._traffic(seconds, rng([seed, 0])))
            tasks.create_task(repeat(self._come_and_go, 1.0, 1))
            tasks.create_task(repeat(self._resize, 10.0, 2))
            tasks.create_task(repeat(self._monitor, 0.2, 3))
            tasks.create_task(repeat(self._bad_input, 0.5, 4))
            watchers = [tasks.create_task(self._watch()) for _ in range(WATCHERS if watched else 0)]
            await asyncio.sleep(seconds)
            for watcher in watchers:
                watcher.cancel()
        return await self._n_swaps() - before

    async def _traffic(self, seconds: float, rng: np.random.Generator) -> None:
        async with asyncio.TaskGroup() as tasks:
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            for at_s in np.sort(rng.uniform(0.0, seconds, int(REQUESTS_PER_S * seconds))):
                await asyncio.sleep(max(0.0, began_s + float(at_s) - loop.time()))
                model = self.models[rng.integers(len(self.models))]
                kind = int(rng.integers(len(PROMPT_LENGTHS)))
                cut = int(rng.integers(MAX_TOKENS)) if rng.random() < CANCELLED_SHARE else None
                tasks.create_task(self._request(model, kind, cut))

    async def _request(self, model: str, kind: int, cut: int | None) -> None:
        """One request, cancelled after `cut` tokens if given. Its tokens are compared with those it gave
        alone."""
        ids: list[int] = []
        status = "LOST"
        try:
            async with self.client.stream(model, _prompt(kind), **_options(kind)) as events:
                async for event in events:
                    match event:
                        case Delta():
                            ids.extend(event.token_ids)
                        case Finish():
                            status = "OK"
                    if cut is not None and len(ids) >= cut:
                        status = "CUT"
                        break
        except CallFailed as error:
            status = error.code.name
            self.tally.complain(f"request of {model}", error)
        self.tally.took("traffic", status)
        expected = self._alone[model, kind]
        wanted = expected if status == "OK" else expected[: len(ids)]
        self.tally.n_tokens += len(ids)
        self.tally.n_changed += sum(a != b for a, b in zip(ids, wanted, strict=False)) + abs(
            len(ids) - len(wanted)
        )

    async def _come_and_go(self, rng: np.random.Generator) -> None:
        """Register a model, use it once, remove it; or try to register something that is not a model."""
        if rng.random() < 0.5:
            bad = ("empty", "quantised", "torn", "nowhere")[rng.integers(4)]
            await self._expect(
                "bad source", self.client.models.register("bad", str(self.folder / bad)), refused=True
            )
            return
        await self._expect("register", self.client.models.register(GUEST, str(self.folder / self.models[0])))
        await self._expect("guest", self._ask(GUEST, 0))
        await self._expect("unregister", self.client.models.unregister(GUEST, force=bool(rng.random() < 0.5)))

    async def _resize(self, rng: np.random.Generator) -> None:
        await self._expect("resize", self.client.pool.resize(ARENAS[rng.integers(len(ARENAS))]))

    async def _monitor(self, rng: np.random.Generator) -> None:
        model = self.models[rng.integers(len(self.models))]
        calls: tuple[Callable[[], Coroutine[object, object, object]], ...] = (
            self.client.pool.status,
            self.client.models.list,
            lambda: self.client.models.get(model),
            lambda: self.client.metadata(model),
            lambda: self.client.tokenize(model, "some text"),
            lambda: self.client.ready(model),
            lambda: self.client.pool.trace(1.0),
            self.client.planning.catalogue,
        )
        await self._expect("monitor", calls[rng.integers(len(calls))]())

    async def _bad_input(self, rng: np.random.Generator) -> None:
        if rng.random() < 0.2:
            call = self.client.generate("no such model " * int(rng.integers(1, 10_000)), [1, 2])
        else:
            options = BAD_OPTIONS[rng.integers(len(BAD_OPTIONS))]
            model = self.models[rng.integers(len(self.models))]
            call = self.client.generate(model, [1, 2], **{"max_tokens": 4, **options})  # type: ignore[arg-type]
        await self._expect("bad input", call, refused=True)

    async def _watch(self) -> None:
        async for _ in self.client.pool.watch(min_interval_s=WATCH_INTERVAL_S):
            self.tally.took("watch", "OK")

    async def _expect(
        self, activity: str, call: Coroutine[object, object, object], *, refused: bool = False
    ) -> None:
        """Await a call. An error is a complaint, unless a refusal was expected; then its absence is one."""
        try:
            await call
            status = "ACCEPTED" if refused else "OK"
        except CallFailed as error:
            status = error.code.name
            if not refused or error.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
                self.tally.complain(activity, error)
        self.tally.took(activity, status)

    async def _ask(self, model: str, kind: int) -> Completion:
        return await self.client.generate(model, _prompt(kind), **_options(kind))

    async def _n_swaps(self) -> int:
        return sum(model.n_swaps for model in (await self.client.pool.status()).models)


def _prompt(kind: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(kind).integers(0, 256, PROMPT_LENGTHS[kind])]


def _options(kind: int) -> dict[str, Any]:
    """Greedy for the first kind of prompt, sampled for the others."""
    return {
        "max_tokens": MAX_TOKENS,
        "ignore_end_tokens": True,
        "temperature": 0.8 if kind else 0.0,
        "seed": kind,
    }


def _sources(folder: Path) -> list[str]:
    """Checkpoints of all families, and folders that are not checkpoints."""
    for index, family in enumerate(tiny.FAMILIES):
        tiny.create(family, folder / family, seed=index)
    (folder / "empty").mkdir()
    quantised = tiny.create("llama", folder / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (quantised / "config.json").write_text(json.dumps(config))
    torn = tiny.create("llama", folder / "torn") / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:5000])
    return list(tiny.FAMILIES)


def _sample() -> Sample:
    """The front is our child; the node is the largest of its children."""
    front = next(p for p in psutil.Process().children() if "serve" in p.cmdline())
    below = [_resident(child) for child in front.children(recursive=True)]
    return Sample(_resident(front), max(below, default=0))


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


async def _sample_for_ever(samples: list[Sample]) -> None:
    while True:
        samples.append(await asyncio.to_thread(_sample))
        await asyncio.sleep(1.0)


async def run(seconds: float, n_pairs: int) -> dict[str, float]:
    """The whole run; returns its metrics."""
    with tempfile.TemporaryDirectory(prefix="tokenmux-soak-") as name:
        folder = Path(name)
        models = await asyncio.to_thread(_sources, folder)
        config = {
            "listen": "127.0.0.1:0",
            "catalogue": str(folder / "catalogue"),
            "models": {model: str(folder / model) for model in models},
            "device": {
                "kind": "cpu",
                "arena": ARENAS[-1],
                "host_cache": 256 * MIB,
                "host_kv": 16 * MIB,
                "slab": MIB // 4,
                "prefill_chunk_tokens": 64,
            },
        }
        async with served(config, folder) as address, AsyncClient(address, resumption=None) as client:
            soak = Soak(client, address, models, folder)
            await soak.learn()
            samples: list[Sample] = []
            sampling = asyncio.create_task(_sample_for_ever(samples))
            plain, watched = 0, 0
            for pair in range(n_pairs):
                plain += await soak.window(seconds / (2 * n_pairs), pair, watched=False)
                watched += await soak.window(seconds / (2 * n_pairs), pair, watched=True)
            sampling.cancel()
            status = await client.pool.status()
    tally = soak.tally
    table(
        "answers",
        ("activity", "status", "number"),
        [(*key.rsplit(" ", 1), n) for key, n in sorted(tally.codes.items())],
    )
    for complaint, n in Counter(tally.complaints).most_common(20):
        print(f"{n} x {complaint}")
    middle = samples[len(samples) // 2 : len(samples) // 2 + len(samples) // 10 + 1]
    end = samples[-(len(samples) // 10 + 1) :]
    front, node = (
        [median(getattr(sample, which) for sample in part) / MIB for part in (middle, end)]
        for which in ("front", "node")
    )
    table(
        "resident memory, MiB",
        ("process", "first", "middle", "end"),
        [("front", samples[0].front / MIB, *front), ("node", samples[0].node / MIB, *node)],
    )
    return {
        "seconds": seconds,
        "n_requests": sum(n for key, n in tally.codes.items() if key.startswith("traffic")),
        "n_tokens": tally.n_tokens,
        "n_changed_tokens": tally.n_changed,
        "n_internal_or_unknown": tally.count("INTERNAL", "UNKNOWN"),
        "n_lost": sum(
            n
            for key, n in tally.codes.items()
            if key.startswith("traffic") and key.split()[1] not in ("OK", "CUT")
        ),
        "n_bad_input_accepted": tally.count("ACCEPTED"),
        "n_complaints": len(tally.complaints),
        "n_restarts": status.n_restarts,
        "n_swaps": plain + watched,
        "swaps_with_watchers_over_without": watched / max(1, plain),
        "front_growth": front[1] / front[0],
        "node_growth": node[1] / node[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A real server under everything at once.")
    parser.add_argument("--quick", action="store_true", help="one minute instead of ten")
    parser.add_argument("--seconds", type=float, help="length of the run, 600 by default")
    arguments = parser.parse_args()
    seconds = arguments.seconds or (60.0 if arguments.quick else 600.0)
    finish("soak", asyncio.run(run(seconds, n_pairs=1 if arguments.quick else 5)), TARGETS)


if __name__ == "__main__":
    main()
