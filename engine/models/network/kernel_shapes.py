"""What a model asks of the kernels, found by running it for shapes alone (`shape_run.py`). Imports Triton
(through `kernels.warm`)."""

import torch
from transformers import PreTrainedConfig

from tokenmux.core.errors import UnsupportedModel
from tokenmux.kernels.warm import ModelShape
from tokenmux.models.network.kernel_path import check_heads
from tokenmux.models.network.shape_run import run_for_shapes
from tokenmux.models.network.skeleton import empty_model
from tokenmux.models.transformers_log import quiet_transformers


def model_shapes(
    config: PreTrainedConfig, dtype: torch.dtype, block_size: int, *, trust_remote_code: bool = False
) -> tuple[ModelShape, ...]:
    """What the kernels must be compiled for: one shape for each kind of layer, nearly always just one.

    Raises UnsupportedModel if the kernels cannot serve a layer's heads, or if the model does not run with our
    attention at all.
    """
    try:
        with quiet_transformers():
            run = run_for_shapes(empty_model(config, dtype, trust_remote_code=trust_remote_code))
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise UnsupportedModel(f"architecture {config.model_type}: it cannot be served ({reason})") from error
    if not run.calls:
        raise UnsupportedModel(
            f"architecture {config.model_type}: its layers do not call the attention function"
        )
    kinds = {(call.head_dim, call.group, call.softcap, call.sinks) for call in run.calls.values()}
    for head_dim, group, _, _ in kinds:
        check_heads(head_dim, group)
    return tuple(
        ModelShape(
            dtype=dtype,
            head_dim=head_dim,
            block_size=block_size,
            group=group,
            vocabulary=run.logits.shape[-1],
            logits=run.logits.dtype,
            softcap=softcap,
            sinks=sinks,
        )
        for head_dim, group, softcap, sinks in sorted(kinds, key=str)
    )
