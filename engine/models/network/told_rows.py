"""Rows of a step that tell what the model thought of a prompt: the log-probability of the token that follows.

Their logits are never all there at once: a chunk of 512 tokens with a vocabulary of 150,000 would take 300 MB
that no budget accounts for. The layers run once, and the head for a few rows at a time (`run_once`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from tokenmux.core.sampling import PromptTelling


class ToldRows(NamedTuple):
    """Rows `[row, row + len(targets))` of a pass, which belong to segment number `segment`. Each is followed
    by one of `targets` in its prompt."""

    segment: int
    row: int
    targets: tuple[int, ...]
    n_likeliest: int

    def pieces(self, n_rows: int) -> Iterator["ToldRows"]:
        """The same rows, at most `n_rows` at a time."""
        for start in range(0, len(self.targets), n_rows):
            yield self._replace(row=self.row + start, targets=self.targets[start : start + n_rows])


def told_rows(segment: int, telling: PromptTelling, start: int, end: int, row: int) -> list[ToldRows]:
    """Those among the rows for positions `[start, end)` of a segment, the first of which is `row`."""
    first, last = max(start, telling.first), min(end, telling.first + len(telling.targets))
    if first >= last:
        return []
    targets = telling.targets[first - telling.first : last - telling.first]
    return [ToldRows(segment, row + first - start, targets, telling.n_likeliest)]


@contextmanager
def run_once(layers: nn.Module) -> Iterator[None]:
    """Within this, `layers` run at their first call and return the same at further ones.

    Everything else of the model runs every time: its head, and what its modelling code does to logits. Code
    that never calls `layers` runs as a whole each time, which is slow and right.
    """
    forward, kept = layers.forward, None

    def forward_once(*arguments: Any, **named: Any) -> Any:
        nonlocal kept
        if kept is None:
            kept = forward(*arguments, **named)
        return kept

    layers.forward = forward_once
    try:
        yield
    finally:
        del layers.forward


def padded_rows(rows: ToldRows, n_rows: int, device: torch.device) -> torch.Tensor:
    """The numbers of the rows, the last of them repeated until there are `n_rows`."""
    last = len(rows.targets) - 1
    return rows.row + torch.arange(n_rows, device=device).clamp_(max=last)
