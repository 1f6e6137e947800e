"""Reads transformers' configs from foreign folders. Every failure names its reason."""

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from tokenmux.core.errors import UnsupportedModel
from tokenmux.models.foreign_errors import first_line, foreign_errors_as
from tokenmux.models.json_files import read_object
from tokenmux.models.transformers_log import quiet_transformers


def load_model_config(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of the checkpoint in `folder`. Raises BadCheckpoint for a damaged file, UnsupportedModel
    for one that transformers refuses."""
    read_object(folder / "config.json")
    with (
        foreign_errors_as(lambda error: UnsupportedModel(f"{folder / 'config.json'}: {first_line(error)}")),
        quiet_transformers(),
    ):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=trust_remote_code
        )
        # Which code computes attention and experts is not the model's to say, and it may not be installed.
        config._attn_implementation = None
        config._experts_implementation = None
    return config
