"""Checks the numbers of a config.json before anything of that size is built: a single wrong number must
not take the machine down."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights  # type: ignore[import-untyped]
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tokenmux.core.errors import BadCheckpoint, UnsupportedModel
from tokenmux.models.foreign_errors import first_line, foreign_errors_as

_BUILT_ONE_BY_ONE = ("layer", "expert")
"""Keys with these words in them count things that are built in a loop."""
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_COUNTED = 4096
"""More layers or experts than this must show in the number of tensors."""
MOST_LAYERS = 1024
"""Layers are built one by one, several times. The deepest models have some 130."""
_WEIGHTS_PER_BYTE = 4
"""The densest format that can be read has two."""
_PROBED_BYTES = 1 << 30
"""The probe of a model with heads of 256 numbers takes 3 MB. A model that takes more than this is not a
language model."""


def check_counts(path: Path, config: Mapping[str, Any], n_tensors: int) -> None:
    """Raise BadCheckpoint if the config in `path` asks for more layers or experts than the checkpoint's
    tensors can hold."""
    text = config.get("text_config")
    parts = [config, text if isinstance(text, dict) else {}]
    for key, value in (item for part in parts for item in part.items()):
        if not isinstance(value, int) or not any(word in key for word in _BUILT_ONE_BY_ONE):
            continue
        if key in _LAYERS and MOST_LAYERS < value <= n_tensors:
            raise BadCheckpoint(f"{path}: {key} is {value}, and models have at most {MOST_LAYERS} layers")
        if value > max(n_tensors, _COUNTED) or (key in _LAYERS and value > n_tensors):
            raise BadCheckpoint(f"{path}: {key} is {value}, but the checkpoint has {n_tensors} tensors")


def check_size(
    path: Path, config: PreTrainedConfig, n_bytes: int, *, trust_remote_code: bool = False
) -> None:
    """Raise BadCheckpoint if the config in `path` describes a model that needs more than `n_bytes` of
    weights."""
    n_weights, n_buffered = _numbers(config, trust_remote_code)
    if n_weights > _WEIGHTS_PER_BYTE * n_bytes:
        raise BadCheckpoint(
            f"{path}: describes {n_weights} weights, but the checkpoint has {n_bytes} bytes of them"
        )
    if 4 * n_buffered > max(n_bytes, _PROBED_BYTES):
        raise BadCheckpoint(f"{path}: describes a model with {4 * n_buffered >> 20} MiB besides its weights")


def check_buildable(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> None:
    """Raise UnsupportedModel if a model of `config`, with its buffers, would take more memory than a probe
    should."""
    n_bytes = 4 * sum(_numbers(config, trust_remote_code))
    if n_bytes > _PROBED_BYTES:
        raise UnsupportedModel(
            "config.json describes a model of which even two layers with few heads and words take "
            f"{n_bytes >> 20} MiB"
        )


def _numbers(config: PreTrainedConfig, trust_remote_code: bool) -> tuple[int, int]:
    """How many numbers the weights and the buffers of a model of `config` have, without allocating them."""
    with foreign_errors_as(
        lambda error: UnsupportedModel(
            f"no {config.model_type} model can be built from config.json ({first_line(error)})"
        )
    ):
        with init_empty_weights(include_buffers=True):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                deepcopy(config), trust_remote_code=trust_remote_code
            )
        model.tie_weights()
    return sum(p.numel() for p in model.parameters()), sum(b.numel() for b in model.buffers())
