"""Rows of a step whose hidden states are added, for embeddings: a sum for each cell of the prefill grid.

Hidden states are what the layers return, after the final norm. A cell begins and ends at the same positions
whatever step it is in, and its sum is one addition of a tensor of the same shape: it has the same bits in any
company.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from tokenmux.core.errors import InternalError
from tokenmux.core.pooling import PooledRows


class SummedRows(NamedTuple):
    """Rows `[row, row + n)` of a pass, which have the positions from `first` on in segment number
    `segment`."""

    segment: int
    row: int
    first: int
    n: int

    def sum_of(self, hidden: torch.Tensor) -> PooledRows:
        """The sum of these rows of `hidden[row, dimension]`, in float32."""
        sums = hidden[self.row : self.row + self.n].float().sum(0)
        return PooledRows(self.first, self.n, sums.cpu().contiguous().numpy().tobytes())


def summed_rows(segment: int, pooled: tuple[int, int], start: int, end: int, row: int) -> list[SummedRows]:
    """Those of the positions `pooled` among the rows of one cell, which has positions `[start, end)` and
    begins at `row`."""
    first, last = max(start, pooled[0]), min(end, pooled[1])
    return [SummedRows(segment, row + first - start, first, last - first)] if first < last else []


@contextmanager
def hidden_states_of(layers: nn.Module) -> Iterator[Callable[[], torch.Tensor]]:
    """Within this, remember what `layers` return: gives a function that says the hidden states
    `[row, dimension]` of their last run."""
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _arguments: Any, output: Any) -> None:
        kept[:] = [output[0][0]]

    def last() -> torch.Tensor:
        if not kept:
            raise InternalError("the model's code did not call its layers: there are no hidden states")
        return kept[0]

    hook = layers.register_forward_hook(keep)
    try:
        yield last
    finally:
        hook.remove()
