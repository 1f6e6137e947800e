"""What `paged_decode` computes, in plain torch: attention of one query token per row over its KV blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tokenmux.kernels.layout import KVLayout


def paged_decode(
    query: torch.Tensor,
    arena: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    layout: KVLayout,
    layer: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of `query` `[row, head, dim]` over the first `lengths[row]` tokens of each row, in float32.

    The query stands at position `lengths[row] - 1`, whose key and value are already in their block. `window`
    lets it see that many tokens, including itself. `softcap` bends logits to `softcap * tanh(logit /
    softcap)`. `sinks` `[head]` adds one logit per head to the softmax, without a value. A row of length 0 (a
    padded slot) yields zeros.
    """
    heads_per_kv = query.shape[1] // layout.kv_heads
    out = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
    for row, length in enumerate(lengths.tolist()):
        if length == 0:
            continue
        keys, values = layout.gather(arena, table[row].tolist(), length, layer)
        oldest = 0 if window is None else max(length - window, 0)
        keys = keys[:, oldest:].float().repeat_interleave(heads_per_kv, dim=0)
        values = values[:, oldest:].float().repeat_interleave(heads_per_kv, dim=0)
        logits = torch.einsum("hd,htd->ht", query[row].float(), keys) * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if sinks is not None:
            logits = torch.cat([logits, sinks.float()[:, None]], dim=1)
        weights = torch.softmax(logits, dim=1)[:, : keys.shape[1]]
        out[row] = torch.einsum("ht,htd->hd", weights, values)
    return out
