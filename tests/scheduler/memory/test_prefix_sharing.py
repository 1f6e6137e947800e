"""What an instance knows of a prompt's beginning, before it has the request."""

from tokenmux.core.facts import ModelId
from tokenmux.core.prefix import NOTHING_KNOWN, KnownPrefix, Prefix, prefix_keys, prefix_seed
from tokenmux.scheduler.memory.arena import Arena
from tokenmux.scheduler.memory.prefix_index import PrefixIndex
from tokenmux.scheduler.memory.prefix_sharing import PrefixSharing
from tokenmux.scheduler.memory.slab import Cell
from tokenmux.scheduler.memory.slabs import SlabPool

MODEL = ModelId("m")
CELL = 8
BLOCK = 4


def sharing(prefix: Prefix, on_device: set[int], on_host: set[int]) -> PrefixSharing:
    """Indices that know some cells of the prefix."""
    indices = []
    for known in (on_device, on_host):
        index = PrefixIndex(SlabPool(Arena(1 << 14), slab_bytes=1 << 10))
        for place in sorted(known):
            blocks = index.pool.allocate(block_bytes=16, n=CELL // BLOCK)
            index.keep(Cell(prefix.keys[place], MODEL, blocks))
        indices.append(index)
    return PrefixSharing(*indices)


def known(
    on_device: set[int], on_host: set[int], n_prompt: int = 4 * CELL + 1, grid: int = CELL, reads: bool = True
) -> KnownPrefix:
    keys = prefix_keys(prefix_seed(MODEL, ()), range(n_prompt), CELL)
    prefix = Prefix(MODEL, CELL, keys, reads=reads)
    return sharing(prefix, on_device, on_host).known(prefix, BLOCK, n_prompt, grid)


def test_what_the_device_and_the_host_know_counts_up_to_the_first_gap() -> None:
    assert known({0, 1, 3}, set()) == (2 * CELL, 0)
    assert known({0, 1}, {0, 1, 2}) == (3 * CELL, CELL), "one cell would have to be paged in"
    assert known(set(), {0, 1}) == (2 * CELL, 2 * CELL)
    assert known({0}, {1}) == (CELL, 0), "host copies count only as a prefix of a table"
    assert known({1, 2, 3}, {2}) == NOTHING_KNOWN


def test_one_token_stays_to_be_computed() -> None:
    assert known({0, 1}, set(), n_prompt=2 * CELL) == (CELL, 0)


def test_what_is_known_ends_on_the_grid() -> None:
    assert known({0, 1, 2}, set(), grid=2 * CELL) == (2 * CELL, 0)
    assert known({0, 1}, {0, 1, 2}, grid=2 * CELL) == (2 * CELL, 0)


def test_a_request_that_does_not_read_is_given_nothing() -> None:
    assert known({0, 1}, set(), reads=False) == NOTHING_KNOWN
