"""Many small pools on virtual time, each with a seed of its own: processes die and hang, operators change
everything, and no request is lost, no token is wrong, and all books balance.

`python -m tests.chaos.search` tries other seeds, and replays one that fails.
"""

import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.chaos.world import World

N_SEEDS = 60
N_NIGHTLY = 5000

FOUND = {
    605: "a status asked for a model that was removed in mid-step",
    3368: "two removals of a model at once left one that was served and unknown to the node",
    4431: "a model was removed while its weights were about to be copied",
    10117: "a request was accepted beside a pin that was on its way out",
    30415: "a model that was removed was found guilty, and the node was never replaced",
    30537: "a pin took the room of a request that was being served, which then waited for ever",
    30668: "a pin took the room of a request, which a later node refused",
    30957: "a pin took the room of a request, and its model came and went for ever",
}
"""Seeds that found a fault, and what it was. They are worth keeping although other worlds may hide behind
them after any change."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of executors die here, and each death is logged."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", FOUND)
def test_worlds_that_found_a_fault(seed: int) -> None:
    World(seed).run()


@pytest.mark.timeout(300)
def test_worlds() -> None:
    run(range(N_SEEDS))


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_many_worlds() -> None:
    run(range(100_000, 100_000 + N_NIGHTLY))


def run(seeds: range) -> None:
    counts: Counter[str] = Counter()
    for seed in seeds:
        try:
            counts.update(World(seed).run())
        except BaseException as error:
            error.add_note(f"seed {seed}; to replay it: python -m tests.chaos.search --seed {seed}")
            raise
    # Worlds in which nothing happens prove nothing.
    for kind in ("complete", "failed", "left", "PagingLaunch", "ReallocateArena", "drain done", "add done"):
        assert counts[kind] >= len(seeds) // 20, counts
