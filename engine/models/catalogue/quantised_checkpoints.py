"""Which quantised checkpoints can be read: only those that transformers itself turns back into plain weights.

The others are refused by the name of their method before anything is loaded: loading them needs libraries
that are not installed, or gives a model whose layers cannot run here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tokenmux.core.errors import UnsupportedModel

_READ = frozenset({"mxfp4"})
"""Methods that are dequantised while they are loaded."""
_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
"""Files that some tools write beside a config.json that does not mention quantisation."""
_PACKED = (
    ".qweight",
    ".weight_packed",
    ".weight.absmax",
    ".SCB",
    ".W_q",
    ".weight._data",
    ".weight_scale_inv",
)
"""Endings of the names of packed tensors."""


def refuse_quantised(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModel if the checkpoint in `folder`, with this config.json, is quantised in an
    unreadable way."""
    method = _method(config)
    if method is None:
        method = next((method for name, method in _FILES.items() if (folder / name).is_file()), None)
    if method is not None and method not in _READ:
        raise _refusal(folder, method)


def refuse_packed(folder: Path, tensors: Mapping[str, torch.dtype]) -> None:
    """Raise UnsupportedModel if a checkpoint's tensors are packed weights, by their names or their types.

    transformers would silently take the integers for weights, without their scales.
    """
    for name, dtype in tensors.items():
        if name.endswith(_PACKED):
            raise _refusal(folder, f"as tensor {name} shows")
        if name.endswith(".weight") and not dtype.is_floating_point:
            raise _refusal(folder, f"as tensor {name} of type {str(dtype).removeprefix('torch.')} shows")


def _method(config: Mapping[str, Any]) -> str | None:
    """The method's name; None for plain weights."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config", "quantization"):
            said = part.get(key)
            if not said:
                continue
            if not isinstance(said, dict):
                return f"{key} {said!r}"[:60]
            named = said.get("quant_method")
            if named is None and said.get("load_in_4bit") is None and said.get("load_in_8bit") is None:
                return "mlx" if key == "quantization" else f"a {key} that names no quant_method"
            return "bitsandbytes" if named is None else str(named)[:40]
    return None


def _refusal(folder: Path, method: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{folder}: quantised weights ({method}) are not supported: take the unquantised checkpoint, "
        "or a GGUF file"
    )
