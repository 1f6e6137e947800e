"""Memory whose content can be checked: what a double of an executor reads and writes instead of numbers.

A piece of memory is a list of units. A block of KV covers several, and holds a value for each of its tokens;
an image of weights covers many. Reading what is not there, or is partly overwritten, is a fault.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

UNIT = 64
"""Bytes. All blocks, slabs, extents and moves of the chaos' models are multiples of it."""


class MemoryFault(AssertionError):
    """An executor was told to read what is not there."""


@dataclass(eq=False, slots=True)
class Cell:
    """What lies at a place: KV of some tokens, or an image of weights."""

    n_units: int
    values: list[int | None] = field(default_factory=list)
    image: str = ""


class Memory:
    """An arena, or host memory."""

    def __init__(self, n_bytes: int) -> None:
        self.n_units = n_bytes // UNIT
        self._units: dict[int, tuple[Cell, int]] = {}

    def write(self, offset: int, cell: Cell) -> None:
        first = offset // UNIT
        if offset % UNIT or first + cell.n_units > self.n_units:
            raise MemoryFault(f"a write of {cell.n_units} units at {offset}, and there are {self.n_units}")
        for i in range(cell.n_units):
            self._units[first + i] = (cell, i)

    def read(self, offset: int) -> Cell | None:
        """The cell that lies whole at `offset`."""
        first = offset // UNIT
        found = self._units.get(first)
        if found is None or found[1]:
            return None
        cell = found[0]
        last = self._units.get(first + cell.n_units - 1)
        whole = last is not None and last[0] is cell
        if whole and cell.n_units > 2:
            whole = all(self._units.get(first + i, (None,))[0] is cell for i in range(cell.n_units))
        return cell if whole else None

    def move(self, source: int, target: int, n_bytes: int) -> None:
        first, to, n = source // UNIT, target // UNIT, n_bytes // UNIT
        if source % UNIT or target % UNIT or n_bytes % UNIT or max(first, to) + n > self.n_units:
            raise MemoryFault(f"a move of {n_bytes} bytes from {source} to {target}")
        moved = [self._units.pop(first + i, None) for i in range(n)]
        for i, unit in enumerate(moved):
            if unit is None:
                self._units.pop(to + i, None)
            else:
                self._units[to + i] = unit


def next_value(total: int, token: int) -> int:
    """The KV of a token whose predecessors' values have this sum."""
    return ((total ^ 0x9E3779B97F4A7C15) * (2 * token + 1) + token + (total >> 29)) & 0xFFFFFFFFFFFFFFF


def drawn(total: int, seed: int, vocab: int) -> int:
    """The token that follows tokens whose values have this sum: any but the last one of the vocabulary."""
    return ((total * 0xBF58476D1CE4E5B9 + seed) >> 31) % (vocab - 1)


def expected_output(
    prompt: Iterable[int], seed: int, max_tokens: int, end_tokens: frozenset[int], vocab: int
) -> tuple[int, ...]:
    """What a request yields: a pure function of its prompt and its seed."""
    total, output = 0, []
    for token in prompt:
        total += next_value(total, token)
    while len(output) < max_tokens:
        token = drawn(total, seed, vocab)
        output.append(token)
        if token in end_tokens:
            break
        total += next_value(total, token)
    return tuple(output)
