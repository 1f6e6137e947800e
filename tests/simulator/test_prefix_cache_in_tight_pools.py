"""Idle KV stands in nobody's way: where no two prompts begin alike, a pool with the prefix cache decides
exactly what it decides without it.

It brought weights in almost twice as often once: idle cells lay in slabs beside blocks in use, and only slabs
without any make room for weights.
"""

from dataclasses import replace

import numpy as np
import pytest

from tokenmux.core.effects import decisions
from tokenmux.core.request import ServiceLevel
from tokenmux.simulator.planner.named_models import parse_market
from tokenmux.simulator.scenario import Market, simulate
from tokenmux.workload.generate import traffic
from tokenmux.workload.trace import Arrival, arrivals, without_prefix

CELL = 2048


def long_prompts(n_models: int, rps: float, seed: int) -> tuple[Market, list[Arrival]]:
    """Prompts of 6,000 to 16,000 tokens, each of which begins like no other."""
    market = parse_market([f"{n_models}*qwen2.5-7b"], {})
    rng = np.random.default_rng(seed)
    lines = []
    for number, line in enumerate(traffic(rng, {str(m): rps / n_models for m in market.facts}, 100.0)):
        n_prompt = int(rng.integers(6000, 16000))
        hash_ids = tuple(range(1000 * number, 1000 * number + -(-n_prompt // 512)))
        n_output = int(rng.integers(50, 500))
        lines.append(replace(line, input_tokens=n_prompt, output_tokens=n_output, hash_ids=hash_ids))
    return market, arrivals(lines, market.max_context, ServiceLevel(10.0, 0.1), cell_tokens=CELL)


def decided(market: Market, trace: list[Arrival], n_gpus: int) -> tuple[list[str], int]:
    """All decisions in order, and the most bytes of idle KV that there were."""
    log: list[str] = []
    outcome = simulate(
        market,
        trace,
        n_gpus,
        on_effects=lambda index, at_s, effects: log.extend(
            f"{index} {at_s} {decision}" for decision in decisions(effects)
        ),
    )
    return log, sum(instance.ledger.blocks.idle_bytes for instance in outcome.simulator.instances)


@pytest.mark.parametrize(
    ("n_models", "n_gpus", "rps", "seed"), [(4, 1, 0.8, 2), (5, 1, 0.8, 1), (7, 2, 2.0, 1)]
)
def test_what_is_not_shared_changes_no_decision(n_models: int, n_gpus: int, rps: float, seed: int) -> None:
    market, trace = long_prompts(n_models, rps, seed)
    on, idle_bytes = decided(market, trace, n_gpus)
    off, _ = decided(market, [without_prefix(arrival) for arrival in trace], n_gpus)
    assert idle_bytes > 0
    assert on == off
    assert sum("Evict" in line for line in off) > 5, "weights must come and go"
