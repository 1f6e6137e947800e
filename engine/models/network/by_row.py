"""Runs modelling code so that a row's bits depend on that row alone, by replacing the operations for which
they would not.

Two things make a row depend on other rows: the kernel that a matrix product uses for its number of rows
(`rows.py`, `row_pieces.py`), and the elements left over when an array is computed several at a time
(`vectors.py`). Modelling code is transformers', so its calls are intercepted on their way into torch. That
costs 1.4 us per call, and nothing in a recorded step.
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
"""Functions that multiply a step's rows with weights, and which argument holds the rows. The shapes of
products within attention do not depend on the step."""


class ByRow(TorchFunctionMode):
    """While entered, linear layers obey `rule`, and element-wise functions are computed in whole vectors."""

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
        # A recorded step never has more rows than one piece (`Runner.logits`).
        cut = self._rule.most is not None and not torch._C._get_tracing_state()
        if cut and place is not None and len(args) > place:
            return in_pieces(func, place, args, named, self._rule)
        if args and isinstance(args[0], torch.Tensor) and is_rounded_by_place(func, args[0].dtype):
            return by_vectors(func, *args, **named)
        return func(*args, **named)
