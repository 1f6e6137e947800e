"""Whatever happens to the devices of a pool, every request ends once, with all its tokens, and nothing is
left."""

from collections import Counter
from functools import cache

import pytest

from tests.scheduler.pool.worlds import Fates
from tokenmux.scheduler.policy.baselines.request_level import OneModelPerInstance

SEEDS = range(60)


@cache
def what_happened(seed: int) -> Counter[str]:
    return Fates(seed).run()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_request_ends_once_with_all_its_tokens(seed: int) -> None:
    what_happened(seed)


@pytest.mark.parametrize("policy", ["request-level", "aegaeon"])
@pytest.mark.parametrize("seed", range(20))
def test_so_it_is_with_the_other_policies_of_servers(seed: int, policy: str) -> None:
    Fates(seed, policy).run()


@pytest.mark.parametrize("seed", range(20))
def test_so_it_is_where_a_model_has_one_instance(seed: int) -> None:
    Fates(seed, "request-level", OneModelPerInstance("request-level", forever=False)).run()


def test_everything_has_happened() -> None:
    seen = sum((what_happened(seed) for seed in SEEDS), Counter[str]())
    expected = (
        "cancelled", "paused", "pinned", "refused",
        "lost with requests", "went on elsewhere", "kept KV", "came back",
        "drained", "drained in spite of all", "added", "removed", "not removed", "resized", "not resized",
    )  # fmt: skip
    assert [what for what in expected if seen[what] < 5] == []
