"""Mixtures of experts on a processor: one product for each expert in use, with the rows that chose it.

transformers offers one product per pair of row and expert, which copies the expert's weights for every pair
(23 GB and minutes for 512 tokens through one layer of Qwen1.5-MoE's shape), and grouped products, whose bits
depend on how many rows chose the same expert. Here each expert's rows are padded and cut like the rows of any
linear layer (`rows.py`), so that a row's bits depend on that row alone.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from tokenmux.models.network.rows import RowRule

EXPERTS_NAME = "tokenmux_by_row"
"""Name under which transformers finds `experts_by_row`."""


def register_experts() -> None:
    """Register `experts_by_row` with transformers."""
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS_NAME, experts_by_row)


def experts_by_row(
    experts: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The output of a layer's experts for `hidden_states[row, size]`: each row from the experts that it
    chose, added in the order of its choices.

    `experts` is a transformers module that transformers' own implementations could run as well.
    """
    n_rows, n_choices = top_k_index.shape
    chosen, order = torch.sort(top_k_index.reshape(-1), stable=True)
    x = hidden_states[order // n_choices]
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    x = _layer(experts, first, x, chosen)
    x = experts._apply_gate(x) if experts.has_gate else experts.act_fn(x)
    x = _layer(experts, "down_proj", x, chosen)
    if getattr(experts, "has_post_expert_norm", False):
        x = experts.post_expert_norm(x)
    x = x * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    x = x[torch.argsort(order)].view(n_rows, n_choices, hidden_states.size(-1)).sum(dim=1)
    return x.to(hidden_states.dtype)


def _layer(experts: Any, name: str, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    out = expert_products(x, getattr(experts, name), chosen, experts.is_transposed)
    return out + getattr(experts, f"{name}_bias")[chosen] if experts.has_bias else out


def expert_products(
    x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, transposed: bool
) -> torch.Tensor:
    """Row `i` of `x` times the weight `chosen[i]` of `weights[expert, n, k]` (`[expert, k, n]` if
    transposed). `chosen` must be ascending.

    torch's function modes see this call, so that `by_row.py` can set the rule.
    """
    if has_torch_function_unary(x):
        product: torch.Tensor = handle_torch_function(expert_products, (x,), x, weights, chosen, transposed)
        return product
    if x.is_meta:  # a run for shapes alone: there are no choices
        return x.new_empty(x.size(0), weights.size(2 if transposed else 1))
    return products_by_rule(x, weights, chosen, transposed, RowRule(1, 1))


def products_by_rule(
    x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, transposed: bool, rule: RowRule
) -> torch.Tensor:
    """The same as `expert_products`, each expert's rows padded and cut by `rule`."""
    compute = _scripted() if torch._C._get_tracing_state() else _products
    return compute(x, weights, chosen, transposed, rule.minimum, rule.multiple, rule.most or 0)


@cache
def _scripted() -> Callable[..., torch.Tensor]:
    """As TorchScript, so that a recorded step keeps the loop."""
    scripted: Callable[..., torch.Tensor] = torch.jit.script(_products)
    return scripted


def _products(
    x: torch.Tensor,
    weights: torch.Tensor,
    chosen: torch.Tensor,
    transposed: bool,
    minimum: int,
    multiple: int,
    most: int,
) -> torch.Tensor:
    counts: list[int] = torch.bincount(chosen, minlength=weights.size(0)).tolist()
    n_outputs = weights.size(2) if transposed else weights.size(1)
    out = torch.empty((x.size(0), n_outputs), dtype=x.dtype, device=x.device)
    start = 0
    for expert in range(len(counts)):
        end = start + counts[expert]
        while start < end:
            n = end - start if most == 0 else min(most, end - start)
            padded = max(minimum, (n + multiple - 1) // multiple * multiple)
            rows = x[start : start + n]
            if padded > n:
                rows = torch.constant_pad_nd(rows, [0, 0, 0, padded - n], 0.0)
            if transposed:
                product = torch.mm(rows, weights[expert])
            else:
                product = F.linear(rows, weights[expert])
            out[start : start + n] = product[:n]
            start += n
    return out
