"""Runs modelling code so that a row's bits depend on the row alone: what it calls is computed another way
where the way matters.

Two things tie a row to its company: the kernel that a matrix product takes for its number of rows (`rows.py`,
`row_pieces.py`), and the elements of an array that are left over when it is computed several at a time
(`vectors.py`). Modelling code is transformers', so its calls are caught on their way into torch. A call that
is caught or passed on takes 1.4 us more; a recorded step takes none.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from tokenmux.models.network.experts import expert_products, products_by_rule
from tokenmux.models.network.row_pieces import in_pieces
from tokenmux.models.network.rows import RowRule
from tokenmux.models.network.vectors import by_vectors, is_rounded_by_place
from tokenmux.models.weights.packing import packed_product

_ROWS_AT = {F.linear: 0, packed_product: 0, torch.addmm: 1}
"""What multiplies a step's rows with weights, and which argument the rows are. Products within attention have
shapes that do not depend on the step."""


class ByRow(TorchFunctionMode):
    """While it is entered, linear layers obey `rule`, and element-wise functions are computed in whole
    vectors."""

    def __init__(self, rule: RowRule) -> None:
        super().__init__()
        self._rule = rule

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is expert_products:
            x, weights, chosen, transposed = args
            return products_by_rule(x, weights, chosen, transposed, self._rule)
        place = _ROWS_AT.get(func)
        # A recorded step has no more rows than one piece (`Runner.logits`).
        cut = self._rule.most is not None and not torch._C._get_tracing_state()
        if cut and place is not None and len(args) > place:
            return in_pieces(func, place, args, named, self._rule)
        if args and isinstance(args[0], torch.Tensor) and is_rounded_by_place(func, args[0].dtype):
            return by_vectors(func, *args, **named)
        return func(*args, **named)
