"""From the hidden states of a prompt to one vector, as a model's checkpoint says: its embedding.

Hidden states are those of the last layer, after the final norm. A step tells sums of them, one for each cell
of the prefill grid (`PooledRows`), and the front adds these up in the order of their positions: so a vector
depends on its prompt alone, however the prompt was cut into steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

SHORTEST = 1e-12
"""Vectors are not divided by less than this, as in torch's `normalize`."""

PoolingKind = Literal["last", "mean", "first"]
"""Which tokens of a prompt count: the last one, all of them alike, or the first one (`cls`)."""


def pooled_positions(kind: PoolingKind, n_prompt: int) -> tuple[int, int]:
    """The first position that counts, and the one after the last.

    >>> pooled_positions("last", 5), pooled_positions("mean", 5)
    ((4, 5), (0, 5))
    """
    match kind:
        case "last":
            return n_prompt - 1, n_prompt
        case "mean":
            return 0, n_prompt
        case "first":
            return 0, 1


class PooledRows(NamedTuple):
    """The sum of the hidden states at positions `[first, first + n)` of a prompt: float32, in the byte order
    of the machine, which all processes share."""

    first: int
    n: int
    sums: bytes


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a model makes embeddings of `n_dimensions` numbers. With `normalised`, their length is 1.

    If it `shortens`, the first numbers of a vector are an embedding too (Matryoshka): as many as one of
    `lengths` says, or any number if that is empty.
    """

    kind: PoolingKind
    normalised: bool
    n_dimensions: int
    shortens: bool = False
    lengths: tuple[int, ...] = ()

    def finished(self, values: Sequence[float], n_dimensions: int | None = None) -> tuple[float, ...]:
        """The embedding of a prompt whose pooled hidden states are `values`: the first `n_dimensions` of them
        (None: all), normalised if the model says so.

        >>> Pooling("last", True, 3, shortens=True).finished((3.0, 4.0, 12.0), 2)
        (0.6, 0.8)
        """
        kept = values[:n_dimensions]
        if not self.normalised:
            return tuple(kept)
        length = max(math.hypot(*kept), SHORTEST)
        return tuple(value / length for value in kept)


@dataclass(frozen=True, slots=True)
class NoPooling:
    """A model makes no embeddings, and why."""

    reason: str


Embedding = Pooling | NoPooling
"""What a model's checkpoint says of embeddings."""
