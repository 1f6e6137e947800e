"""Attention over block-major paged KV, called by transformers' modelling code once per layer.

It is registered with transformers' `AttentionInterface` under `ATTENTION_NAME`; the model passes the step's
`StepBatch` down as the keyword argument `STEP_ARGUMENT`. A step laid out for the Triton kernels
(`kernel_step.py`, on a GPU) computes its own attention; the rest of this file is the formulation in torch.
New keys and values are written into their blocks in place, then prompt cells are computed one by one and
decode rows all at once, in shapes that do not depend on the batch (see `batch.py`).

Honours scaling, sliding windows, soft-capped scores and attention sinks. Leaves rotary embedding, projections
and everything else to the model.

Decode rows: scores and values are batched products over (tile, KV head), the query heads of a group as their
rows. On SmolLM2 at 32 rows of 256 keys this took 0.3 ms per layer, torch's flash kernel over the same tiles
0.8 ms, and products in float32 0.7 ms.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from tokenmux.models.network.batch import CellKeys, DecodeInputs, StepBatch

ATTENTION_NAME = "tokenmux_paged"
STEP_ARGUMENT = "tokenmux_step"
HOLDER = "tokenmux_step_holder"
"""Attribute of attention modules that holds the `StepHolder` of their model."""


class AttendsItself(Protocol):
    """A step with its own attention: same arguments and result as `paged_attention`."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Write keys and values into their blocks and attend all rows: `[1, n_rows, q_heads, head_dim]`."""
        ...


class StepHolder:
    """Where attention finds the step if the model does not pass its keyword arguments on. One per model."""

    __slots__ = ("step",)

    def __init__(self) -> None:
        self.step: StepBatch | DecodeInputs | AttendsItself | None = None


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    tokenmux_step: StepBatch | DecodeInputs | AttendsItself | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend the rows of a step.

    `query` is `[1, q_heads, n_rows, head_dim]`, `key` and `value` `[1, kv_heads, n_rows, head_dim]`, already
    rotated; the result is `[1, n_rows, q_heads, head_dim]`. Narrower values (latent attention) are padded
    with zeros to the width of keys, in which KV is kept, and the result has their width. `attention_mask` is
    always None: the model makes none for a function that has no mask registered.
    """
    step = tokenmux_step
    if step is None:
        step = getattr(module, HOLDER).step
    assert step is not None
    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    # From the module, not from the tensors: a recorded step would freeze a branch on a size.
    n_values, n_keys = getattr(module, "v_head_dim", None), getattr(module, "qk_head_dim", None)
    if isinstance(n_values, int) and isinstance(n_keys, int) and n_values < n_keys:
        value = F.pad(value, [0, n_keys - n_values])
        output = _attend_step(step, layer, query, key, value, scale, sliding_window, softcap, s_aux)
        return output[..., :n_values], None
    return _attend_step(step, layer, query, key, value, scale, sliding_window, softcap, s_aux), None


def _attend_step(
    step: StepBatch | DecodeInputs | AttendsItself,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
    s_aux: torch.Tensor | None,
) -> torch.Tensor:
    """`paged_attention` with everything resolved, keys and values of one width."""
    if not isinstance(step, StepBatch | DecodeInputs):
        attended = step.attend(
            layer, query, key, value, scale=scale, window=sliding_window, softcap=softcap, sinks=s_aux
        )
        return attended
    tokens, units = step.tokens[layer], step.units[layer]
    if not step.n_prompt_rows:
        tiles = step.decode_tiles(sliding_window)
        decode = _scripted_decode() if isinstance(step, DecodeInputs) else _decode
        decoded: torch.Tensor = decode(
            query, key, value, tokens, units, step.write_lines, *tiles, scale, softcap, s_aux
        )
        return decoded
    assert isinstance(step, StepBatch)
    write_kv(tokens, step.write_lines, key, value)
    n_rows, n_prompt_rows = query.shape[2], step.n_prompt_rows
    output = query.new_empty(1, n_rows, query.shape[1], query.shape[3])
    for index, cell in enumerate(step.cells):
        rows = slice(cell.row, cell.row + cell.n)
        q = query[:, :, rows]
        if cell.start == 0 and (sliding_window is None or cell.n <= sliding_window):
            k, v, mask = key[:, :, rows], value[:, :, rows], None
        else:
            keys = step.cell_keys(index, sliding_window)
            k, v = _read_cell(units, keys, key.shape[1], key.shape[3])
            mask = keys.mask
        output[:, rows] = _attend_cell(q, k, v, mask, scale, softcap, s_aux).transpose(1, 2)
    if n_prompt_rows < n_rows:
        tiles = step.decode_tiles(sliding_window)
        q = query[0, :, n_prompt_rows:].transpose(0, 1)
        output[0, n_prompt_rows:] = _attend_tiles(q, units, *tiles, key.shape[1], scale, softcap, s_aux)
    return output


def _read_cell(
    units: torch.Tensor, keys: CellKeys, n_heads: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys and values of one request, each `[1, kv_heads, n_keys, head_dim]`."""
    k, v = units.index_select(0, keys.units).view(2, 1, n_heads, -1, head_dim)
    return k[:, :, : keys.n_keys], v[:, :, : keys.n_keys]


def _attend_cell(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of one prompt cell, `[1, q_heads, n, head_dim]`. Without `mask` the cell sees itself,
    causally."""
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    n, group = q.shape[2], q.shape[1] // k.shape[1]
    if mask is None:
        mask = q.new_full((n, n), -torch.inf).triu(1)
    scores = torch.matmul(q, k.repeat_interleave(group, 1).transpose(2, 3)).float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores += mask
    if sinks is None:
        weights = torch.softmax(scores, -1)
    else:
        with_sink = torch.cat((scores, sinks.float().view(1, -1, 1, 1).expand(1, -1, n, 1)), -1)
        weights = torch.softmax(with_sink, -1)[..., :-1]
    return torch.matmul(weights.to(v.dtype), v.repeat_interleave(group, 1))


# The functions from here to `_tree_sum` run as they are and, inside a recorded step, in TorchScript's
# interpreter, which keeps their branches. That is why they use `size` instead of unpacked shapes, and empty
# tensors instead of None.


def _decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    tokens: torch.Tensor,
    units: torch.Tensor,
    write_lines: torch.Tensor,
    tile_units: torch.Tensor,
    mask: torch.Tensor,
    row_of_tile: torch.Tensor,
    merge: torch.Tensor,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of a step with decode rows only, `[1, n_rows, q_heads, head_dim]`."""
    write_kv(tokens, write_lines, key, value)
    q = query[0].transpose(0, 1)
    n_heads = key.size(1)
    return _attend_tiles(
        q, units, tile_units, mask, row_of_tile, merge, n_heads, scale, softcap, sinks
    ).unsqueeze(0)


def write_kv(tokens: torch.Tensor, write_lines: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Write the keys and values of all rows except padding into their blocks."""
    n = write_lines.size(0) // (2 * key.size(1))
    new = torch.cat((key[:, :, :n], value[:, :, :n]), 1)
    tokens.index_copy_(0, write_lines, new.view(-1, new.size(3)))


def _attend_tiles(
    q: torch.Tensor,
    units: torch.Tensor,
    tile_units: torch.Tensor,
    mask: torch.Tensor,
    row_of_tile: torch.Tensor,
    merge: torch.Tensor,
    n_heads: int,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of the decode rows `q[row, q_head, dim]`, each over its own tiles; same shape as `q`."""
    n_q_heads, head_dim = q.size(1), q.size(2)
    n_tiles, n_keys = mask.size(0), mask.size(3)
    n_products = n_tiles * n_heads
    kv = units.index_select(0, tile_units).view(2, n_products, n_keys, head_dim)
    q = q.contiguous() if row_of_tile.size(0) == 0 else q.index_select(0, row_of_tile)
    scores = torch.bmm(q.view(n_products, -1, head_dim), kv[0].transpose(1, 2))
    scores = scores.view(n_tiles, n_heads, -1, n_keys)
    if softcap is not None:
        scores = torch.tanh(scores.float().mul_(scale / softcap)).mul_(softcap).to(q.dtype)
        scores.add_(mask)
    else:
        scores = torch.add(mask, scores, alpha=scale)
    weights = torch.softmax(scores, -1)
    partial = torch.bmm(weights.view(n_products, -1, n_keys), kv[1]).view(n_tiles, n_q_heads, head_dim)
    if merge.size(0) == 0 and sinks is None:
        return partial
    lse = torch.logsumexp(scores.float(), [-1]).view(n_tiles, n_q_heads)
    return _merge(partial, lse, merge, sinks)


def _merge(
    partial: torch.Tensor, lse: torch.Tensor, merge: torch.Tensor, sinks: torch.Tensor | None
) -> torch.Tensor:
    """Join each row's tiles, `partial[tile, head, dim]` with log-sum-exp `lse[tile, head]` in float32, and
    its sinks.

    Sums run over a binary tree of slots, so that unused ones (weight 0) change no bit, however many the
    longest row of the batch needs. A row of one tile is returned as that tile.
    """
    slots, values = lse.unsqueeze(1), partial.unsqueeze(1)
    if merge.size(0) > 0:
        slots = F.pad(lse, [0, 0, 0, 1], value=-torch.inf)[merge]
        values = F.pad(partial, [0, 0, 0, 0, 0, 1])[merge]
    top = slots.amax([1], keepdim=True)
    weights = torch.exp(slots - top)
    total = _tree_sum(weights)
    if sinks is not None:
        total = total + torch.exp(sinks.float() - top[:, 0])
    joined = _tree_sum(weights.unsqueeze(-1) * values)
    return (joined / total.unsqueeze(-1)).to(partial.dtype)


def _tree_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum over dimension 1, whose size is a power of two, by adding neighbours."""
    while x.size(1) > 1:
        x = x[:, 0::2] + x[:, 1::2]
    return x[:, 0]


@cache
def _scripted_decode() -> Callable[..., torch.Tensor]:
    """`_decode` for TorchScript's interpreter. Raises torch's own error if there is no interpreter."""
    scripted: Callable[..., torch.Tensor] = torch.jit.script(_decode)
    return scripted


def register_attention() -> None:
    """Register `ATTENTION_NAME` with transformers. Calling it again has no effect."""
    AttentionInterface.register(ATTENTION_NAME, paged_attention)
