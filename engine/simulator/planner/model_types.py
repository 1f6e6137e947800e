"""What decoder-only models are built of, by the `model_type` of their config.json: norms, biases, experts,
tied weights.

One row for each type whose parameters can be counted; tests compare the counts with what transformers builds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Flag = bool | str
"""True or false for all models of the type, or the config's key that says so (false if it is absent)."""


@dataclass(frozen=True, slots=True)
class ModelType:
    """What the modules of one `model_type` have besides the matrices that all models have."""

    norms: int = 2
    """Norms in each layer."""
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
    """True if input and output embedding are the same weights when the config does not say."""
    positions: bool = False
    """Learned positions."""
    experts: str = ""
    """The key of the number of experts."""
    expert_size: str = "intermediate_size"
    expert_bias: bool = False


_LLAMA = ModelType(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias")
_NEOX = ModelType(
    norm_bias=True, qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias=True, gated=False
)
_GPT2 = ModelType(
    norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True, gated=False, tied=True, positions=True
)
_GEMMA = ModelType(qkv_bias="attention_bias", out_bias="attention_bias", tied=True)

MODEL_TYPES: Mapping[str, ModelType] = {
    "cohere": ModelType(norms=1, qkv_bias="attention_bias", out_bias="attention_bias", tied=True),
    "gemma": _GEMMA,
    "gemma2": ModelType(norms=4, qkv_bias="attention_bias", out_bias="attention_bias", tied=True),
    "gemma3_text": ModelType(
        norms=4, qk_norm="head", qkv_bias="attention_bias", out_bias="attention_bias", tied=True
    ),
    "glm": ModelType(qkv_bias="attention_bias"),
    "glm4": ModelType(norms=4, qkv_bias="attention_bias"),
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "gpt_oss": ModelType(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        sinks=True,
        experts="num_local_experts",
        expert_bias=True,
    ),
    "granite": _LLAMA,
    "llama": _LLAMA,
    "mistral": ModelType(),
    "mixtral": ModelType(experts="num_local_experts"),
    "olmo2": ModelType(qk_norm="all", qkv_bias="attention_bias", out_bias="attention_bias"),
    "olmo3": ModelType(qk_norm="all", qkv_bias="attention_bias", out_bias="attention_bias"),
    "opt": ModelType(
        norm_bias=True,
        qkv_bias="enable_bias",
        out_bias="enable_bias",
        mlp_bias="enable_bias",
        gated=False,
        tied=True,
        positions=True,
    ),
    "phi": ModelType(
        norms=1, norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True, head_bias=True, gated=False
    ),
    "phi3": ModelType(),
    "qwen2": ModelType(qkv_bias=True),
    "qwen2_moe": ModelType(qkv_bias=True, experts="num_experts", expert_size="moe_intermediate_size"),
    "qwen3": ModelType(qk_norm="head", qkv_bias="attention_bias", out_bias="attention_bias"),
    "qwen3_moe": ModelType(
        qk_norm="head",
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        experts="num_experts",
        expert_size="moe_intermediate_size",
    ),
    "smollm3": ModelType(
        qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias", tied=True
    ),
    "starcoder2": ModelType(
        norm_bias=True, qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", gated=False, tied=True
    ),
}
"""The types by their `model_type`."""
