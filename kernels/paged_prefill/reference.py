"""What `paged_prefill` computes, in plain torch: causal attention of ragged chunks over their KV blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tokenmux.kernels.layout import KVLayout


def paged_prefill(
    query: torch.Tensor,
    arena: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor,
    *,
    layout: KVLayout,
    layer: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of `query` `[token, head, dim]`, in float32.

    Row r owns the tokens `starts[r]` to `starts[r + 1]`: the last of its `lengths[r]` tokens, all of which
    are already in its blocks (`kv_append` runs first). `window`, `softcap` and `sinks` as in `paged_decode`.
    """
    heads_per_kv = query.shape[1] // layout.kv_heads
    out = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
    bounds = starts.tolist()
    for row, length in enumerate(lengths.tolist()):
        chunk = slice(bounds[row], bounds[row + 1])
        new = bounds[row + 1] - bounds[row]
        if new == 0:
            continue
        keys, values = layout.gather(arena, table[row].tolist(), length, layer)
        keys = keys.float().repeat_interleave(heads_per_kv, dim=0)
        values = values.float().repeat_interleave(heads_per_kv, dim=0)
        logits = torch.einsum("qhd,htd->hqt", query[chunk].float(), keys) * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        key_at = torch.arange(length, device=query.device)
        query_at = key_at[length - new :, None]
        hidden = key_at > query_at
        if window is not None:
            hidden |= key_at <= query_at - window
        logits = logits.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            sink = sinks.float()[:, None, None].expand(-1, new, 1)
            logits = torch.cat([logits, sink], dim=2)
        weights = torch.softmax(logits, dim=2)[:, :, :length]
        out[chunk] = torch.einsum("hqt,htd->qhd", weights, values)
    return out
