"""What a model asks of the kernels, found by running it: which heads, caps and sinks its layers pass to
attention.

The model runs once on the meta device, where nothing is computed and weights take no memory, with a step that
notes the arguments of every call. So nothing here knows an architecture by name. Imports Triton (through
`kernels.warm`).
"""

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedConfig

from tokenmux.core.errors import UnsupportedModel
from tokenmux.kernels.warm import ModelShape
from tokenmux.models.network.attention import STEP_ARGUMENT
from tokenmux.models.network.kernel_path import check_heads
from tokenmux.models.network.skeleton import empty_model
from tokenmux.models.transformers_log import quiet_transformers

_N_ROWS = 4


@dataclass(frozen=True, slots=True)
class _Heard:
    head_dim: int
    group: int
    softcap: bool
    sinks: torch.dtype | None


@dataclass(slots=True)
class _Listener:
    """A step that computes nothing and notes the arguments of every call."""

    heard: set[_Heard] = field(default_factory=set)

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
        group = query.shape[1] // key.shape[1]
        self.heard.add(
            _Heard(query.shape[3], group, softcap is not None, None if sinks is None else sinks.dtype)
        )
        return query.transpose(1, 2)


def model_shapes(
    config: PreTrainedConfig, dtype: torch.dtype, block_size: int, *, trust_remote_code: bool = False
) -> tuple[ModelShape, ...]:
    """What the kernels must be compiled for: one shape for each kind of layer, nearly always just one.

    Raises UnsupportedModel if the kernels cannot serve a layer's heads, or if the model does not run with our
    attention at all.
    """
    listener = _Listener()
    try:
        with quiet_transformers(), torch.inference_mode():
            model = empty_model(config, dtype, trust_remote_code=trust_remote_code)
            torch.nn.Module.to(model, "meta")
            rows = torch.zeros(1, _N_ROWS, dtype=torch.int64, device="meta")
            logits = model(
                input_ids=rows,
                position_ids=rows,
                use_cache=False,
                **{STEP_ARGUMENT: listener},
            ).logits
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise UnsupportedModel(f"architecture {config.model_type}: it cannot be served ({reason})") from error
    if not listener.heard:
        raise UnsupportedModel(
            f"architecture {config.model_type}: its layers do not call the attention function"
        )
    for heard in listener.heard:
        check_heads(heard.head_dim, heard.group)
    return tuple(
        ModelShape(
            dtype=dtype,
            head_dim=heard.head_dim,
            block_size=block_size,
            group=heard.group,
            vocabulary=logits.shape[-1],
            logits=logits.dtype,
            softcap=heard.softcap,
            sinks=heard.sinks,
        )
        for heard in sorted(listener.heard, key=str)
    )
