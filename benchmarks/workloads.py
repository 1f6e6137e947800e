"""Workloads and pools that the scheduling benchmarks share: the paper's files, steady Poisson traffic,
ServeGen's market.

The published files are read from the folder that the environment variable TOKENMUX_DATA names. Without it,
generated traffic of the same rates and lengths is used, and the table says so.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tokenmux.core.request import ServiceLevel
from tokenmux.simulator.architectures import architecture
from tokenmux.simulator.scenario import Market, paper_market
from tokenmux.workload.generate import traffic
from tokenmux.workload.published import first_appearances, read_paper, scale_as_artifact
from tokenmux.workload.shape import clipped, longer
from tokenmux.workload.trace import Arrival, Trace, arrivals

GOAL = 0.99
"""Share of all tokens that must be on time."""


def data_folder() -> Path | None:
    """The folder of the published workloads, if there is one."""
    folder = os.environ.get("TOKENMUX_DATA")
    return Path(folder) if folder else None


def paper_file(
    n_models: int,
    rate: float,
    service: ServiceLevel | None = None,
    input_factor: float = 1.0,
    output_factor: float = 1.0,
) -> tuple[Market, list[Arrival]]:
    """One of the paper's synthetic workloads, with lengths scaled as its artifact does."""
    folder = data_folder()
    if folder is None:
        duration_s = 60.0 if rate >= 0.5 else 120.0
        return steady(n_models, 0.9 * rate, duration_s, service=service)
    trace = read_paper(folder / "paper" / "synth_workloads.csv.gz", n_models, rate)
    market = paper_market(first_appearances(trace))
    trace = scale_as_artifact(longer(trace, input_factor, output_factor), market.max_context)
    return market, arrivals(trace, market.max_context, service)


def steady(
    n_models: int, rate: float, duration_s: float, seed: int = 0, service: ServiceLevel | None = None
) -> tuple[Market, list[Arrival]]:
    """Poisson traffic of `rate` requests per second for each of the paper's models, ShareGPT lengths."""
    names = [f"model-{index}" for index in range(n_models)]
    market = paper_market(names)
    trace = traffic(np.random.default_rng(seed), dict.fromkeys(names, rate), duration_s)
    return market, arrivals(_fitting(trace, market), market.max_context, service)


def _fitting(trace: Trace, market: Market) -> Trace:
    return clipped(trace, min(market.max_context.values()))


def with_real_kv(market: Market) -> Market:
    """The same models with as many KV heads as they really have; the artifact counts one for each attention
    head."""
    kv_heads = {model: architecture(name).n_kv_heads for model, name in market.architectures.items()}
    facts = {
        model: replace(facts, kv=replace(facts.kv, n_kv_heads=kv_heads[model]))
        for model, facts in market.facts.items()
    }
    return replace(market, facts=facts)


def quick(arguments: Sequence[str]) -> bool:
    return "--quick" in arguments
