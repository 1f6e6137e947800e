"""Facts of a model from its config.json, to plan for models that are not here yet.

A model that is served has its facts from its weights (`tokenmux.models.catalogue.model_facts`).
"""

from collections.abc import Mapping

from tokenmux.core.errors import ConfigError
from tokenmux.core.facts import BLOCK_TOKENS, Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.simulator.planner.config_values import Config, head_dim, n_kv_heads, number, text_part
from tokenmux.simulator.planner.parameter_count import count_parameters

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def facts_of_config(name: str, config: Config) -> ModelFacts:
    """Facts of a model that is called `name`. Raises ConfigError for a config of unknown type or with
    something missing."""
    text = text_part(config)
    counts, n_bytes = count_parameters(text), _dtype_bytes(config, text)
    shape = KvShape(
        n_layers=number(text, "num_hidden_layers"),
        n_kv_heads=n_kv_heads(text),
        head_dim=head_dim(text),
        dtype_bytes=n_bytes,
        block_size=BLOCK_TOKENS,
    )
    image = Image(ImageId(f"{name}/weights"), counts.total * n_bytes)
    return ModelFacts(
        ModelId(name), (image,), shape, _max_context(text), counts.active, number(text, "vocab_size")
    )


def _dtype_bytes(config: Config, text: Config) -> int:
    """Bytes of one weight; 2 if the config does not say."""
    found = (part.get(key) for part in (text, config) for key in ("dtype", "torch_dtype"))
    name = next((value for value in found if value is not None), "bfloat16")
    if name not in _DTYPE_BYTES:
        raise ConfigError(f"dtype is {name!r}, and must be one of {', '.join(_DTYPE_BYTES)}")
    return _DTYPE_BYTES[name]


def _max_context(config: Config) -> int:
    """As `tokenmux.models.catalogue.model_facts.max_context`: with rotary scaling of type longrope, the
    original context."""
    limit = number(config, "max_position_embeddings")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(rope, Mapping) and "longrope" in (rope.get("rope_type"), rope.get("type")):
        original = rope.get("original_max_position_embeddings") or config.get(
            "original_max_position_embeddings"
        )
        limit = min(limit, int(original or limit))
    return limit
