"""From a checkpoint to a weight image: in place if possible, otherwise once through transformers' own
loading.

A safetensors file whose tensors already have the model's names, shapes and types, each on its boundary, is
used in place. Anything else is loaded by transformers, which renames, fuses and dequantises as the
architecture needs, and is written in the order of the model's layers. There is no table of names here.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tokenmux.core.errors import BadCheckpoint
from tokenmux.core.progress import Progress, no_progress
from tokenmux.core.sizes import round_up
from tokenmux.models.catalogue.safetensors_checkpoint import SafetensorsFile, find_weights
from tokenmux.models.foreign_errors import foreign_errors_as
from tokenmux.models.network.skeleton import state_names
from tokenmux.models.transformers_log import quiet_transformers
from tokenmux.models.weights.image import DTYPE_NAMES, map_bytes, sha256, write_image
from tokenmux.models.weights.manifest import TENSOR_ALIGNMENT, Manifest

_WITHOUT_EFFECT = re.compile(
    r"rotary_emb\.inv_freq$|\.masked_bias$|^(v_head|value_head|score|classifier|(model\.)?mtp(_\w+)?)\."
)
"""Tensors that do not change what a model writes: former buffers, and heads for other purposes."""


def image_from_folder(
    folder: Path,
    config: PreTrainedConfig,
    model: PreTrainedModel,
    target: Path,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    progress: Progress = no_progress,
) -> Manifest:
    """Make the image of a safetensors folder; `target` is written only if the checkpoint cannot be used in
    place.

    `model` is the empty model of `config`. Raises BadCheckpoint, UnsupportedModel or DoesNotFit.
    """
    files = find_weights(folder)
    names = state_names(model)
    if len(files) == 1 and _is_image(files[0], names, dtype):
        (file,) = files
        path = file.path.resolve()
        digest = sha256(map_bytes(path, file.data_offset, file.n_bytes), path.name, progress)
        computed_in = DTYPE_NAMES[dtype]
        return Manifest(
            str(file.path), computed_in, path, file.data_offset, file.n_bytes, digest, file.tensors
        )
    loaded = _load(
        folder, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code
    )
    return _write(loaded, target, str(folder), dtype, progress)


def _is_image(file: SafetensorsFile, names: Mapping[str, torch.Tensor], dtype: torch.dtype) -> bool:
    """True if the data section of `file` can serve as the image of a model with these tensors."""
    return file.tensors.keys() == names.keys() and all(
        entry.shape == tuple(names[name].shape)
        and entry.dtype == DTYPE_NAMES[dtype if names[name].is_floating_point() else names[name].dtype]
        and entry.offset % TENSOR_ALIGNMENT == 0
        for name, entry in file.tensors.items()
    )


def _load(path: Path, **options: Any) -> PreTrainedModel:
    def refusal(error: BaseException) -> BadCheckpoint:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return BadCheckpoint(f"{path}: transformers cannot load it ({reason})")

    with foreign_errors_as(refusal), quiet_transformers():
        # Mismatches are asked for so that they can be refused below, by name.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path),
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    model: PreTrainedModel = loaded[0]
    report: Mapping[str, Collection[object]] = loaded[1]
    for problem in ("missing_keys", "mismatched_keys"):
        if keys := sorted(report.get(problem) or (), key=str):
            raise BadCheckpoint(
                f"{path}: {len(keys)} {problem.replace('_keys', '')} tensors, such as {keys[0]}"
            )
    unknown = sorted(
        str(key) for key in report.get("unexpected_keys") or () if not _WITHOUT_EFFECT.search(str(key))
    )
    if unknown:
        raise BadCheckpoint(
            f"{path}: {len(unknown)} tensors have no place in the model that config.json describes, "
            f"such as {unknown[0]}"
        )
    return model


def _write(
    model: PreTrainedModel, target: Path, source: str, dtype: torch.dtype, progress: Progress
) -> Manifest:
    names = state_names(model)
    n_bytes = sum(round_up(t.numel() * t.element_size(), TENSOR_ALIGNMENT) for t in names.values())

    return write_image(target, names.items(), source=source, dtype=dtype, n_bytes=n_bytes, progress=progress)
