"""From a GGUF file to what the catalogue serves: config, tokenizer, end tokens, and the weight image."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from tokenmux.core.errors import BadCheckpoint, UnsupportedModel
from tokenmux.core.progress import Progress, no_progress
from tokenmux.core.sizes import round_up
from tokenmux.models.atomic_files import atomic_file
from tokenmux.models.catalogue.gguf.config_parts import POOLING_MODES, Described
from tokenmux.models.catalogue.gguf.gguf_config import GGUF_ARCHITECTURES, described_config
from tokenmux.models.catalogue.gguf.gguf_tokenizer import GgufTokenizer, read_tokenizer
from tokenmux.models.catalogue.gguf.keys import Keys
from tokenmux.models.catalogue.gguf.rotary_factors import FREQUENCIES, LONG, SHORT
from tokenmux.models.catalogue.gguf.shards import GgufModel, read_model
from tokenmux.models.catalogue.gguf.tensors import TensorSource, plan_tensors, read_tensor, values
from tokenmux.models.catalogue.pooling_config import write_pooling_files
from tokenmux.models.foreign_errors import foreign_errors_as
from tokenmux.models.network.skeleton import empty_model, state_names
from tokenmux.models.transformers_log import quiet_transformers
from tokenmux.models.weights.image import write_image
from tokenmux.models.weights.manifest import TENSOR_ALIGNMENT, Manifest

_MOST_FACTORS = 1 << 16


@dataclass(frozen=True, slots=True)
class GgufCheckpoint:
    """A GGUF file that can be served: everything in it is accounted for. No weight has been read yet."""

    config: PreTrainedConfig
    _model: GgufModel
    _tokenizer: GgufTokenizer
    _sources: Mapping[str, TensorSource]
    _shapes: Mapping[str, tuple[int, ...]]
    _pooling_mode: str | None
    """How embeddings are made, by its name of sentence-transformers; None if the file does not say."""

    @classmethod
    def open(cls, file: Path) -> "GgufCheckpoint":
        """Read the header of `file` (any one, if the model has several) and account for every key and tensor.

        Raises NotFound, BadCheckpoint or UnsupportedModel, which name the key or the tensor.
        """

        def refusal(error: BaseException) -> BadCheckpoint:
            reason = next(iter(str(error).strip().splitlines()), repr(error))
            return BadCheckpoint(f"{file}: cannot be read ({type(error).__name__}: {reason})")

        with foreign_errors_as(refusal):
            return cls._open(read_model(file))

    @classmethod
    def _open(cls, model: GgufModel) -> "GgufCheckpoint":
        general = Keys(model.file, model.metadata, "general")
        name = general.text("architecture")
        general.expect("type", "model")
        used = frozenset((FREQUENCIES, SHORT, LONG)) & model.tensors.keys()
        for extra in used:
            if len(model.tensors[extra].shape) != 1 or model.tensors[extra].shape[0] > _MOST_FACTORS:
                raise BadCheckpoint(f"{model.file}: {extra} has the shape {list(model.tensors[extra].shape)}")
        found = Described(
            Keys(model.file, model.metadata, name),
            model.tensors,
            {extra: values(model.tensors[extra]) for extra in used},
            old_vocabulary=model.metadata.get("tokenizer.ggml.model") == "llama",
        )
        fields = described_config(name, found)
        tokenizer = read_tokenizer(model.file, model.metadata, name, fields["vocab_size"])
        config = _made(model, fields, tokenizer)
        with quiet_transformers():
            names = state_names(empty_model(config, torch.float32))
        architecture = GGUF_ARCHITECTURES[name]
        sources = plan_tensors(
            model,
            architecture,
            names,
            heads=(
                config.num_attention_heads,
                getattr(config, "num_key_value_heads", config.num_attention_heads),
            ),
            n_layers=config.num_hidden_layers,
            already_used=used,
        )
        shapes = {name: tuple(tensor.shape) for name, tensor in names.items()}
        pooling_mode = POOLING_MODES[found.keys.raw("pooling_type") or 0]
        return cls(config, model, tokenizer, sources, shapes, pooling_mode)

    @property
    def n_bytes(self) -> int:
        """Bytes that a conversion handles: all tensors as stored, and the largest one unpacked to float32."""
        packed = sum(tensor.n_bytes for tensor in self._model.tensors.values())
        return packed + 4 * max(torch.Size(shape).numel() for shape in self._shapes.values())

    def write_text(self, folder: Path) -> None:
        """Write config.json, generation_config.json, the tokenizer and what there is of pooling into
        `folder`."""
        with quiet_transformers():
            self.config.save_pretrained(str(folder))
            self._tokenizer.backend.save_pretrained(str(folder))
        ends: dict[str, Any] = {"eos_token_id": list(self._tokenizer.end_ids)}
        if self._tokenizer.begin_id is not None:
            ends["bos_token_id"] = self._tokenizer.begin_id
        with atomic_file(folder / "generation_config.json") as out:
            out.write(json.dumps(ends, indent=1).encode())

        if self._pooling_mode is not None:
            write_pooling_files(folder, self._pooling_mode, self.config.hidden_size)

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and values of the model's tensors, one after another.

        Raises BadCheckpoint if a value is not finite.
        """
        for name, source in self._sources.items():
            yield name, read_tensor(self._model, source, dtype)

    def write_image(self, target: Path, *, dtype: torch.dtype, progress: Progress = no_progress) -> Manifest:
        """Write the weights, dequantised to `dtype`, as an image. Raises BadCheckpoint or DoesNotFit."""
        sizes = (torch.Size(shape).numel() * dtype.itemsize for shape in self._shapes.values())
        n_bytes = sum(round_up(size, TENSOR_ALIGNMENT) for size in sizes)
        source = str(self._model.file)
        return write_image(
            target, self.tensors(dtype), source=source, dtype=dtype, n_bytes=n_bytes, progress=progress
        )


def _made(model: GgufModel, fields: Mapping[str, Any], tokenizer: GgufTokenizer) -> PreTrainedConfig:
    """The config with these fields. Raises UnsupportedModel if transformers refuses them."""
    options = dict(fields) | {
        "bos_token_id": tokenizer.begin_id,
        "eos_token_id": list(tokenizer.end_ids) or None,
    }
    model_type = options.pop("model_type")

    def refusal(error: BaseException) -> UnsupportedModel:
        reason = " ".join(str(error).split())[:300]
        return UnsupportedModel(f"{model.file}: transformers refuses its config ({reason})")

    with foreign_errors_as(refusal), quiet_transformers():
        config: PreTrainedConfig = AutoConfig.for_model(model_type, **options)
    for name, value in options.items():
        if (
            name not in ("rope_parameters", "bos_token_id", "eos_token_id")
            and getattr(config, name, value) != value
        ):
            raise UnsupportedModel(
                f"{model.file}: {name} is {value}, and transformers makes {getattr(config, name)} of it"
            )
    return config
