"""Checks of slabs against each other and against what others say that they hold: for tests and audits."""

from collections import Counter
from collections.abc import Iterable, Mapping

from tokenmux.core.errors import IntegrityError
from tokenmux.core.handles import BlockHandle
from tokenmux.scheduler.memory.slab import INDEX_BITS, Cell, Slab


def check_users(
    slabs: Mapping[int, Slab],
    cells: Mapping[BlockHandle, Cell],
    used: Iterable[BlockHandle],
    kept: Iterable[Cell],
) -> None:
    """Raise IntegrityError unless exactly the blocks in `used` have users, each as many as it is named times,
    and exactly the cells in `kept` are kept."""
    expected, kept = Counter(iter(used)), list(kept)
    counted = Counter(
        BlockHandle(key << INDEX_BITS | index) for key, slab in slabs.items() for index in slab.own
    )
    for cell in cells.values():
        counted.update(dict.fromkeys(cell.blocks, cell.n_users))
    if expected != +counted:
        lost, unknown = counted - expected, expected - counted
        raise IntegrityError(
            f"slabs: {lost.total()} blocks leaked, {unknown.total()} held blocks are not allocated"
        )
    are_kept = {cell for cell in cells.values() if cell.is_kept}
    if are_kept != set(kept) or len(are_kept) != len(kept):
        raise IntegrityError("slabs: other cells are kept than should be")


def check_slab(slab: Slab, cells: Mapping[BlockHandle, Cell]) -> None:
    """Raise IntegrityError unless the slab's blocks are each free, its own, or of one cell, and counted
    rightly."""
    key = slab.extent
    here = [(cell, places) for cell in cells.values() for other, places in cell.parts if other is slab]
    blocks = [*slab.free, *slab.own, *(place for _, places in here for place in places)]
    if sorted(blocks) != list(range(slab.capacity)) or len(slab.free) == slab.capacity:
        raise IntegrityError(f"slabs: slab {key} has a wrong free list")
    if slab.n_used != len(slab.own) + sum(len(places) for cell, places in here if cell.n_users):
        raise IntegrityError(f"slabs: slab {key} miscounts its blocks in use")
    if slab.idle.keys() != {cell for cell, _ in here if not cell.n_users}:
        raise IntegrityError(f"slabs: slab {key} has other idle cells than it says")
