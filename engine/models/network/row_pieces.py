"""Linear layers computed a limited number of rows at a time.

Some processors multiply few rows and many rows with kernels that round differently: on one with AMX, a row of
a bfloat16 product has one value among up to 32 rows, another among 48, and a third among 512. So a step's
products are cut into pieces with at most as many rows as were found to be treated alike (`rows.py`). On that
processor, 16 pieces of 32 rows take 1.4 times as long as one product of 512 rows at 4096 x 4096, and 3 times
at 1536 x 576; the same product without AMX takes ten times as long.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tokenmux.models.network.rows import RowRule


def in_pieces(
    product: Callable[..., torch.Tensor],
    place: int,
    arguments: Sequence[Any],
    named: Mapping[str, Any],
    rule: RowRule,
) -> torch.Tensor:
    """`product(*arguments, **named)`, computed for as many rows of the argument at `place` at a time as
    the rule allows."""
    x: torch.Tensor = arguments[place]
    rows = x.reshape(-1, x.shape[-1])
    if rule.most is None or len(rows) <= rule.most:
        return product(*arguments, **named)
    pieces = [
        product(*arguments[:place], piece, *arguments[place + 1 :], **named)
        for piece in torch.split(rows, sizes_of_pieces(len(rows), rule.most, rule.minimum))
    ]
    return torch.cat(pieces).view(*x.shape[:-1], -1)


def sizes_of_pieces(n_rows: int, most: int, least: int) -> list[int]:
    """Cut `n_rows` rows into pieces of `most` rows; the last two may be shorter, but none has fewer than
    `least`.

    `n_rows` must be at least `least`, and `least` at most half of `most`.
    """
    sizes = [most] * (n_rows // most)
    rest = n_rows % most
    if rest:
        missing = max(0, least - rest) if sizes else 0
        if missing:
            sizes[-1] -= missing
        sizes.append(rest + missing)
    return sizes
