"""Runs a model once for shapes alone: which heads, windows, caps and sinks its layers pass to attention.

The model runs on the meta device, where nothing is computed and weights take no memory, with a step that
notes the arguments of every call. So nothing here knows an architecture by name, and what a config says
about heads need not be believed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from tokenmux.models.network.attention import STEP_ARGUMENT
from tokenmux.models.network.skeleton import hold_step

_N_ROWS = 4


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one layer passes to attention. `head_dim` is the width of keys; `value_dim` that of values."""

    n_kv_heads: int
    group: int
    head_dim: int
    value_dim: int
    window: int | None
    softcap: bool
    sinks: torch.dtype | None


@dataclass(frozen=True, slots=True)
class ShapeRun:
    """The call of each layer, and the logits (without values)."""

    calls: Mapping[int, AttentionCall]
    logits: torch.Tensor


@dataclass(slots=True)
class _Listener:
    """A step that computes nothing and notes the arguments of every call."""

    calls: dict[int, AttentionCall] = field(default_factory=dict)

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
        self.calls[layer] = AttentionCall(
            n_kv_heads=key.shape[1],
            group=query.shape[1] // key.shape[1],
            head_dim=query.shape[3],
            value_dim=value.shape[3],
            window=window,
            softcap=softcap is not None,
            sinks=None if sinks is None else sinks.dtype,
        )
        return query.transpose(1, 2)


def run_for_shapes(model: PreTrainedModel) -> ShapeRun:
    """Run an empty model, which is moved to the meta device and of no use afterwards.

    Raises whatever the modelling code raises: if its sizes do not fit each other, or if it reads values
    (rotary scaling that depends on positions does), which cannot be done without any.
    """
    listener = _Listener()
    hold_step(model).step = listener
    with torch.inference_mode():
        torch.nn.Module.to(model, "meta")
        rows = torch.zeros(1, _N_ROWS, dtype=torch.int64, device="meta")
        logits: torch.Tensor = model(
            input_ids=rows, position_ids=rows, use_cache=False, **{STEP_ARGUMENT: listener}
        ).logits
    return ShapeRun(listener.calls, logits)
