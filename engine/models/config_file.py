"""Reads JSON files and transformers' configs from foreign folders. Every failure names its reason."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from tokenmux.core.errors import BadCheckpoint, UnsupportedModel
from tokenmux.models.foreign_errors import foreign_errors_as
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
    return config


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises BadCheckpoint."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadCheckpoint(f"{path}: the file is missing") from None
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path}: damaged ({_fault_of(error)})") from None
    if not isinstance(document, dict):
        raise BadCheckpoint(f"{path}: damaged (not an object)")
    return document


def _fault_of(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if "set_int_max_str_digits" in str(error):
        return "a number has thousands of digits"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The message of a foreign exception: its first line with content, with the line that follows a colon;
    otherwise its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    n = 2 if lines[0].endswith(":") else 1
    return " ".join(lines[:n])[:500]
