"""Sizes of decoder-only models, from the values of their config.json alone: no weights, no modelling code, nothing to install.

The counts are those of the modules that transformers builds for each family; tests compare them with what it really builds. Used to plan
for models that are not here yet; a model that is served has its facts from its weights (`tokenmux.models.catalogue.model_facts`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenmux.core.errors import ConfigError
from tokenmux.core.facts import BLOCK_TOKENS, Image, ImageId, KvShape, ModelFacts, ModelId

Flag = bool | str
"""A constant of the family, or the name of the config's key that says so (false where it is absent)."""


@dataclass(frozen=True, slots=True)
class Family:
    """What the modules of a model type have besides the matrices that all have."""

    norms: int = 2
    """Of each layer."""
    norm_bias: bool = False
    qk_norm: str = ""
    """Norms of queries and keys: of one "head", of "all" heads with one weight each, or none."""
    qkv_bias: Flag = False
    out_bias: Flag = False
    mlp_bias: Flag = False
    head_bias: bool = False
    gated: bool = True
    sinks: bool = False
    tied: bool = False
    """Whether input and output embedding are one where the config does not say."""
    positions: bool = False
    """Learned positions."""
    experts: str = ""
    """The key of the number of experts."""
    expert_size: str = "intermediate_size"
    expert_bias: bool = False


_LLAMA = Family(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias")
_NEOX = Family(
    norm_bias=True, qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias=True, gated=False
)
_GPT2 = Family(
    norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True, gated=False, tied=True, positions=True
)
_GEMMA = Family(qkv_bias="attention_bias", out_bias="attention_bias", tied=True)

FAMILIES: Mapping[str, Family] = {
    "cohere": Family(norms=1, qkv_bias="attention_bias", out_bias="attention_bias", tied=True),
    "gemma": _GEMMA,
    "gemma2": Family(norms=4, qkv_bias="attention_bias", out_bias="attention_bias", tied=True),
    "gemma3_text": Family(
        norms=4, qk_norm="head", qkv_bias="attention_bias", out_bias="attention_bias", tied=True
    ),
    "glm": Family(qkv_bias="attention_bias"),
    "glm4": Family(norms=4, qkv_bias="attention_bias"),
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "gpt_oss": Family(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        sinks=True,
        experts="num_local_experts",
        expert_bias=True,
    ),
    "granite": _LLAMA,
    "llama": _LLAMA,
    "mistral": Family(),
    "mixtral": Family(experts="num_local_experts"),
    "olmo2": Family(qk_norm="all", qkv_bias="attention_bias", out_bias="attention_bias"),
    "olmo3": Family(qk_norm="all", qkv_bias="attention_bias", out_bias="attention_bias"),
    "opt": Family(
        norm_bias=True,
        qkv_bias="enable_bias",
        out_bias="enable_bias",
        mlp_bias="enable_bias",
        gated=False,
        tied=True,
        positions=True,
    ),
    "phi": Family(
        norms=1, norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True, head_bias=True, gated=False
    ),
    "phi3": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen2_moe": Family(qkv_bias=True, experts="num_experts", expert_size="moe_intermediate_size"),
    "qwen3": Family(qk_norm="head", qkv_bias="attention_bias", out_bias="attention_bias"),
    "qwen3_moe": Family(
        qk_norm="head",
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        experts="num_experts",
        expert_size="moe_intermediate_size",
    ),
    "smollm3": Family(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias", tied=True),
    "starcoder2": Family(
        norm_bias=True, qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", gated=False, tied=True
    ),
}
"""By `model_type`."""

_OTHER_NAMES = {
    "hidden_size": ("n_embd",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "intermediate_size": ("n_inner", "ffn_dim"),
    "max_position_embeddings": ("n_positions",),
    "num_experts": ("num_local_experts",),
}
_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters: all, and those that one token's pass multiplies with (no look-up tables; of experts the chosen ones)."""

    total: int
    active: int


def facts_of_config(name: str, config: Config) -> ModelFacts:
    """A model's facts under a name of its own. Raises ConfigError for a config that lacks something or is of an unknown type."""
    text = _text(config)
    counts, n_bytes = count_parameters(text), _dtype_bytes(config, text)
    shape = KvShape(
        n_layers=_number(text, "num_hidden_layers"),
        n_kv_heads=_kv_heads(text),
        head_dim=_head_dim(text),
        dtype_bytes=n_bytes,
        block_size=BLOCK_TOKENS,
    )
    image = Image(ImageId(f"{name}/weights"), counts.total * n_bytes)
    return ModelFacts(
        ModelId(name), (image,), shape, _max_context(text), counts.active, _number(text, "vocab_size")
    )


def count_parameters(config: Config) -> Counts:
    """Parameters of the causal language model of this config. Raises ConfigError."""
    text = _text(config)
    family = _family(text)
    hidden, vocabulary = _number(text, "hidden_size"), _number(text, "vocab_size")
    norm = hidden * (2 if family.norm_bias else 1)
    rest = _attention(family, text) + family.norms * norm
    dense, routed, chosen = _feed_forward(family, text)
    n_layers = _number(text, "num_hidden_layers")
    n_dense = _dense_layers(text, n_layers) if family.experts else n_layers
    plain = _mlp(family, text, _inner(text)) if n_dense else 0
    embedding = vocabulary * hidden
    tied = bool(text.get("tie_word_embeddings", family.tied))
    head = 0 if tied else embedding
    head += vocabulary if family.head_bias else 0
    offset = 2 if text.get("model_type") == "opt" else 0
    positions = (_number(text, "max_position_embeddings") + offset) * hidden if family.positions else 0
    n_sparse = n_layers - n_dense
    body = n_layers * rest + n_dense * plain + n_sparse * dense + norm
    total = embedding + positions + body + n_sparse * routed + head
    active = body + n_sparse * chosen + (embedding if tied else 0) + head
    return Counts(total, active)


def _attention(family: Family, config: Config) -> int:
    hidden, head_dim = _number(config, "hidden_size"), _head_dim(config)
    q, kv = _number(config, "num_attention_heads") * head_dim, _kv_heads(config) * head_dim
    n = hidden * (q + 2 * kv) + q * hidden
    n += q + 2 * kv if _flag(family.qkv_bias, config) else 0
    n += hidden if _flag(family.out_bias, config) else 0
    n += {"": 0, "head": 2 * head_dim, "all": q + kv}[family.qk_norm]
    if config.get("use_qk_norm"):
        n += q + kv
    if config.get("qk_layernorm"):
        n += 4 * head_dim
    return n + (_number(config, "num_attention_heads") if family.sinks else 0)


def _mlp(family: Family, config: Config, inner: int) -> int:
    hidden = _number(config, "hidden_size")
    n_up = 2 if family.gated else 1
    bias = n_up * inner + hidden if _flag(family.mlp_bias, config) else 0
    return (n_up + 1) * hidden * inner + bias


def _feed_forward(family: Family, config: Config) -> tuple[int, int, int]:
    """Of a layer with experts: what every token uses, all experts, and those that one token uses."""
    if not family.experts:
        return 0, 0, 0
    hidden, inner = _number(config, "hidden_size"), _number(config, family.expert_size)
    n_experts, n_chosen = _number(config, family.experts), _number(config, "num_experts_per_tok")
    each = 3 * hidden * inner
    dense = n_experts * hidden
    if family.expert_bias:
        dense += n_experts * (1 + 2 * inner + hidden)
    shared = config.get("shared_expert_intermediate_size")
    if shared:
        dense += 3 * hidden * int(shared) + hidden
    return dense, n_experts * each, n_chosen * each


def _dense_layers(config: Config, n_layers: int) -> int:
    """Layers without experts in a model that has some."""
    dense = set(config.get("mlp_only_layers") or ())
    every = int(config.get("decoder_sparse_step") or 1)
    return sum(layer in dense or (layer + 1) % every != 0 for layer in range(n_layers))


def _text(config: Config) -> Config:
    """The part about the language model, in a config of a model that also sees or hears."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _family(config: Config) -> Family:
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ConfigError(
            f"model_type {kind!r} is none whose size can be told from its config (there are {known}); "
            "plan with the name of an architecture of about its size instead, as NAME=ARCHITECTURE"
        )
    return FAMILIES[kind]


def _number(config: Config, key: str) -> int:
    for name in (key, *_OTHER_NAMES.get(key, ())):
        value = config.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}, and must be a whole number above 0")
            return value
    raise ConfigError(f"{key} is missing")


def _inner(config: Config) -> int:
    if config.get("model_type") == "gpt2" and config.get("n_inner") is None:
        return 4 * _number(config, "hidden_size")
    return _number(config, "intermediate_size")


def _kv_heads(config: Config) -> int:
    key = "num_key_value_heads"
    return _number(config, key if config.get(key) is not None else "num_attention_heads")


def _head_dim(config: Config) -> int:
    if config.get("head_dim") is not None:
        return _number(config, "head_dim")
    return _number(config, "hidden_size") // _number(config, "num_attention_heads")


def _flag(flag: Flag, config: Config) -> bool:
    return bool(config.get(flag, False)) if isinstance(flag, str) else flag


def _dtype_bytes(config: Config, text: Config) -> int:
    """Weights are 16-bit where the config does not say."""
    found = (part.get(key) for part in (text, config) for key in ("dtype", "torch_dtype"))
    name = next((value for value in found if value is not None), "bfloat16")
    if name not in _DTYPE_BYTES:
        raise ConfigError(f"dtype is {name!r}, and must be one of {', '.join(_DTYPE_BYTES)}")
    return _DTYPE_BYTES[name]


def _max_context(config: Config) -> int:
    """As `tokenmux.models.catalogue.model_facts.max_context`: with rotary scaling of type longrope, the original context."""
    limit = _number(config, "max_position_embeddings")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(rope, Mapping) and "longrope" in (rope.get("rope_type"), rope.get("type")):
        original = rope.get("original_max_position_embeddings") or config.get(
            "original_max_position_embeddings"
        )
        limit = min(limit, int(original or limit))
    return limit
