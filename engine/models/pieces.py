"""Linear layers computed a limited number of rows at a time.

Some processors multiply few rows and many rows with kernels that round differently: on one with AMX, a row of a bfloat16
product has one value among up to 32 rows, another among 48, and a third among 512. So a step's products are cut into pieces
of at most as many rows as were found to be treated alike (`rows.py`). There, 16 pieces of 32 rows take 1.4 times as long as one
product of 512 rows at 4096 x 4096, and 3 times at 1536 x 576; the same product without AMX takes ten times as long.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from tokenmux.engine.models.packing import packed_product

_ROWS_AT = {F.linear: 0, packed_product: 0, torch.addmm: 1}
"""What modelling code calls to multiply a step's rows with weights, and which argument the rows are. Products within attention have
shapes that do not depend on the step."""


class InPieces(TorchFunctionMode):
    """While it is entered, linear layers take at most `most` rows at a time, and never fewer than `least`.

    There must be `least` rows at least, and `least` may be half of `most` at most.
    """

    def __init__(self, most: int, least: int) -> None:
        super().__init__()
        self._most, self._least = most, least

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        place = _ROWS_AT.get(func)
        if place is None or len(args) <= place:
            return func(*args, **(kwargs or {}))
        x: torch.Tensor = args[place]
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= self._most:
            return func(*args, **(kwargs or {}))
        pieces = [
            func(*args[:place], piece, *args[place + 1 :], **(kwargs or {}))
            for piece in torch.split(rows, sizes_of_pieces(len(rows), self._most, self._least))
        ]
        return torch.cat(pieces).view(*x.shape[:-1], -1)


def sizes_of_pieces(n_rows: int, most: int, least: int) -> list[int]:
    """Cut `n_rows` rows: every piece has `most` rows, but for the last two, so that none has fewer than `least`."""
    sizes = [most] * (n_rows // most)
    rest = n_rows % most
    if rest:
        missing = max(0, least - rest) if sizes else 0
        if missing:
            sizes[-1] -= missing
        sizes.append(rest + missing)
    return sizes
