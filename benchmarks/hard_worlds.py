"""Worlds that broke the scheduler once, made by hand. `benchmarks.worlds` measures them, and tests hold the
scheduler to them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from tokenmux.core.facts import ModelId
from tokenmux.core.request import Request, RequestId, ServiceLevel
from tokenmux.simulator.architectures import Architecture, architecture, paper_architecture
from tokenmux.simulator.hardware import GB
from tokenmux.simulator.scenario import Hardware, Market, market
from tokenmux.workload.generate import Process, poisson, traffic
from tokenmux.workload.lengths import CHAT, Lengths, LengthTable
from tokenmux.workload.shape import clipped
from tokenmux.workload.trace import Arrival, arrivals

INTERACTIVE, BATCH, USUAL = ServiceLevel(2.0, 0.05), ServiceLevel(600.0, 2.0), ServiceLevel()
CHAT_CONTEXT = 4096
"""Longest request in tokens, unless a world is about long ones."""
NEAR_THE_LIMIT = Lengths(LengthTable((0.0, 1.0), (90_000, 129_000)), LengthTable((0.0, 1.0), (50, 500)))
"""Prompts near the context of 131,072 tokens."""


@dataclass(frozen=True, slots=True)
class World:
    name: str
    market: Market
    arrivals: list[Arrival]
    n_gpus: int
    """Number of instances; each is one GPU unless the hardware says otherwise."""
    hardware: Hardware
    pinned: tuple[ModelId, ...] = ()


def world(
    name: str,
    kinds: Mapping[str, Architecture],
    rates: Mapping[str, float],
    duration_s: float,
    n_gpus: int,
    seed: int,
    *,
    level: Callable[[str, Generator], ServiceLevel] = lambda name, rng: USUAL,
    hardware: Hardware | None = None,
    process: Process = poisson,
    lengths: Lengths = CHAT,
    context: int = CHAT_CONTEXT,
) -> World:
    """A world of seeded traffic; `level` draws the service level of each request of a model."""
    rng = np.random.default_rng(seed)
    made = market(kinds)
    lines = clipped(traffic(rng, rates, duration_s, lengths, process), context)
    requests = [
        Arrival(replace(a.request, service=level(a.request.model, rng)), a.n_output)
        for a in arrivals(lines, made.max_context)
    ]
    return World(name, made, requests, n_gpus, hardware or Hardware())


def giant_beside_small(n_gpus: int = 3, duration_s: float = 120.0, seed: int = 0) -> World:
    """A 32B that fills a device (65.5 of 72 GB) at 0.3 requests per second, and thirty 3B at 0.1."""
    small = {f"small-{i}": architecture("llama3.2-3b") for i in range(30)}
    rates = {"giant": 0.3, **dict.fromkeys(small, 0.1)}
    kinds = {"giant": architecture("qwen2.5-32b"), **small}
    return world(f"a giant beside small ones on {n_gpus}", kinds, rates, duration_s, n_gpus, seed)


def interactive_beside_batch(n_gpus: int, duration_s: float = 120.0, seed: int = 0) -> World:
    """Every fifth of the paper's forty models is interactive (0.3 requests per second), the others are batch
    (0.1)."""
    kinds = {f"m{i}": paper_architecture(i) for i in range(40)}
    fast = set(list(kinds)[::5])
    rates = {name: 0.3 if name in fast else 0.1 for name in kinds}

    def level(name: str, rng: Generator) -> ServiceLevel:
        return INTERACTIVE if name in fast else BATCH

    return world(f"interactive beside batch on {n_gpus}", kinds, rates, duration_s, n_gpus, seed, level=level)


def long_prompts(duration_s: float = 120.0, seed: int = 0, rate: float = 0.02) -> World:
    """Twelve 8B with prompts of 90,000 to 129,000 tokens on one GPU: more than it can compute in time, and
    each prompt's KV is 13 of 72 GB."""
    kinds = {f"m{i}": architecture("llama3.1-8b") for i in range(12)}
    rates = dict.fromkeys(kinds, rate)
    return world(
        "prompts near the limit", kinds, rates, duration_s, 1, seed, lengths=NEAR_THE_LIMIT, context=131_072
    )


def disk_bound(duration_s: float = 300.0, seed: int = 0) -> World:
    """Twenty-four 32B on two groups of four GPUs whose host keeps three of them, asked for faster than they
    can be read from disk; and after 20 s one request to a 72B, for which there is no room while one of the
    others is being read."""
    kinds = {
        **{f"m{i}": architecture("qwen2.5-32b") for i in range(24)},
        "largest": architecture("qwen2.5-72b"),
    }
    rates = {**dict.fromkeys(kinds, 0.01), "largest": 0.0}
    hardware = Hardware(n_devices=4, host_cache_bytes=210 * GB)
    made = world("disk-bound", kinds, rates, duration_s, 2, seed, hardware=hardware)
    largest = Arrival(Request(RequestId("largest"), ModelId("largest"), 500, 3000, 20.0), 300)
    requests = sorted([*made.arrivals, largest], key=lambda a: a.request.arrival_s)
    return replace(made, arrivals=requests)


def crowd(n_gpus: int = 6, duration_s: float = 120.0, seed: int = 0) -> World:
    """61 of the paper's models, one of which gets 31% of the 7 requests per second: more than an instance can
    serve beside others."""
    kinds = {f"m{i}": paper_architecture(i) for i in range(61)}
    rates = {**dict.fromkeys(kinds, 0.69 * 7 / 60), "m0": 0.31 * 7}
    return world(f"a crowd on {n_gpus}", kinds, rates, duration_s, n_gpus, seed)
