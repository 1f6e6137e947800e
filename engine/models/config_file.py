"""Reads transformers' configs from foreign folders. Every failure names its reason."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from tokenmux.core.errors import BadCheckpoint, UnsupportedModel
from tokenmux.models.foreign_errors import first_line, foreign_errors_as
from tokenmux.models.json_files import read_object
from tokenmux.models.transformers_log import quiet_transformers

_CONFIG = "config.json"
_LARGEST_BYTES = 4 << 20
"""Configs are copied many times. The largest, with factors for each rotary frequency, have some 10 kB."""
_MOST_LABELS = 1 << 16
"""transformers makes a dictionary of as many."""


def read_model_config(folder: Path) -> dict[str, Any]:
    """The object in the config.json of `folder`. Raises BadCheckpoint if it is damaged, too large to be
    worked with, or names a type that transformers cannot read."""
    path = folder / _CONFIG
    if path.is_file() and (n_bytes := path.stat().st_size) > _LARGEST_BYTES:
        raise BadCheckpoint(f"{path}: {n_bytes} bytes, and a config has at most {_LARGEST_BYTES}")
    config = read_object(path)
    n_labels = config.get("num_labels")
    if isinstance(n_labels, int) and n_labels > _MOST_LABELS:
        raise BadCheckpoint(f"{path}: num_labels is {n_labels}, and a model has at most {_MOST_LABELS}")
    for key in ("dtype", "torch_dtype"):
        if (name := config.get(key)) is not None and not _is_float_type(name):
            raise BadCheckpoint(
                f"{path}: {key} is {name!r:.40}; write bfloat16, float16 or float32 there, or leave it out"
            )
    return config


def _is_float_type(name: object) -> bool:
    """True for the name of a floating-point type in which models compute."""
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1


def load_model_config(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of the checkpoint in `folder`. Raises BadCheckpoint for a damaged file, UnsupportedModel
    for one that transformers refuses."""
    read_model_config(folder)
    with (
        foreign_errors_as(lambda error: UnsupportedModel(f"{folder / _CONFIG}: {first_line(error)}")),
        quiet_transformers(),
    ):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=trust_remote_code
        )
        # Which code computes attention and experts is not the model's to say, and it may not be installed.
        config._attn_implementation = None
        config._experts_implementation = None
    return config
