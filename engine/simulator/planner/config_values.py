"""Numbers of a config.json under the names that different architectures give them."""

from collections.abc import Mapping
from typing import Any

from tokenmux.core.errors import ConfigError

Config = Mapping[str, Any]

_OTHER_NAMES = {
    "hidden_size": ("n_embd",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "intermediate_size": ("n_inner", "ffn_dim"),
    "max_position_embeddings": ("n_positions",),
    "num_experts": ("num_local_experts",),
}


def text_part(config: Config) -> Config:
    """The part about the language model, if the model also sees or hears; otherwise the whole config."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def number(config: Config, key: str) -> int:
    """The whole number under `key`, or under another name for it. Raises ConfigError if it is missing or not
    above 0."""
    for name in (key, *_OTHER_NAMES.get(key, ())):
        value = config.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}, and must be a whole number above 0")
            return value
    raise ConfigError(f"{key} is missing")


def n_kv_heads(config: Config) -> int:
    key = "num_key_value_heads"
    return number(config, key if config.get(key) is not None else "num_attention_heads")


def head_dim(config: Config) -> int:
    if config.get("head_dim") is not None:
        return number(config, "head_dim")
    return number(config, "hidden_size") // number(config, "num_attention_heads")
