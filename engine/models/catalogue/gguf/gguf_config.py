"""The config of each architecture, from the file's metadata: one function each, over what all of them share
(`config_parts.py`)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import MODEL_ARCH

from tokenmux.core.errors import UnsupportedModel
from tokenmux.models.catalogue.gguf import windows
from tokenmux.models.catalogue.gguf.config_parts import (
    LAYER_EPSILON,
    RMS_EPSILON,
    Described,
    GgufSizes,
    bias_fields,
    common_fields,
    read_experts,
    read_sizes,
    refuse_experts,
    rotary,
)


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """How one architecture is read.

    `names` is its table of tensor names; `config` makes the fields of transformers' config, including
    `model_type`. `paired` means that rows of queries and keys are stored pair by pair, as llama.cpp rotates
    them; `raised_norms` that weights of norms are stored with 1 added.
    """

    names: MODEL_ARCH
    config: Callable[[Described], dict[str, Any]]
    paired: bool = False
    raised_norms: bool = False


def described_config(architecture: str, found: Described) -> dict[str, Any]:
    """The fields of the config. Takes every key of the architecture.

    Raises BadCheckpoint or UnsupportedModel.
    """
    if architecture not in GGUF_ARCHITECTURES:
        raise UnsupportedModel(
            f"{found.keys.file}: general.architecture is {architecture[:60]!r}; supported are "
            f"{', '.join(sorted(GGUF_ARCHITECTURES))}"
        )
    fields = GGUF_ARCHITECTURES[architecture].config(found)
    found.keys.refuse_rest()
    ids: dict[str, Any] = {"bos_token_id": None, "pad_token_id": None}
    return ids | fields


def _llama(found: Described) -> dict[str, Any]:
    """Llama, and what is stored under its name: Mistral (with a window) and Mixtral (with experts)."""
    keys, sizes = found.keys, read_sizes(found)
    fields = common_fields(found, sizes) | {
        "rope_parameters": rotary(found, sizes, base=10_000.0 if found.old_vocabulary else None)
    }
    window = windows.everywhere(keys)
    if "expert_count" in keys and keys.integer("expert_count", least=0):
        count, used = read_experts(found, normed=True)
        keys.expect("expert_feed_forward_length", fields["intermediate_size"])
        experts = {"num_local_experts": count, "num_experts_per_tok": used}
        return fields | experts | {"model_type": "mixtral", "sliding_window": window}
    refuse_experts(keys)
    if window is not None:
        return fields | {"model_type": "mistral", "sliding_window": window}
    return fields | {"model_type": "llama"} | bias_fields(found)


def _qwen(model_type: str) -> Callable[[Described], dict[str, Any]]:
    def config(found: Described) -> dict[str, Any]:
        sizes = read_sizes(found)
        refuse_experts(found.keys)
        windows.nowhere(found.keys, sizes.context)
        return common_fields(found, sizes) | {
            "model_type": model_type,
            "rope_parameters": rotary(found, sizes),
        }

    return config


def _qwen_experts(model_type: str, *, normed: bool, shared: bool) -> Callable[[Described], dict[str, Any]]:
    def config(found: Described) -> dict[str, Any]:
        keys, sizes = found.keys, read_sizes(found)
        count, used = read_experts(found, normed=normed)
        windows.nowhere(keys, sizes.context)
        fields = common_fields(found, sizes) | {
            "model_type": model_type,
            "rope_parameters": rotary(found, sizes),
            "num_experts": count,
            "num_experts_per_tok": used,
            "norm_topk_prob": normed,
            "moe_intermediate_size": keys.integer(
                "expert_feed_forward_length", found.size("blk.0.ffn_down_exps.weight", -1)
            ),
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
        if not shared:
            for name in ("expert_shared_count", "expert_shared_feed_forward_length"):
                keys.expect(name, 0)
            return fields
        width = keys.integer("expert_shared_feed_forward_length", found.size("blk.0.ffn_up_shexp.weight", 0))
        keys.expect("expert_shared_count", 1)
        return fields | {"shared_expert_intermediate_size": width}

    return config


def _gemma(found: Described) -> dict[str, Any]:
    sizes = read_sizes(found)
    found.keys.integer("attention.key_length")
    windows.nowhere(found.keys, sizes.context)
    return common_fields(found, sizes) | {
        "model_type": "gemma",
        "rope_parameters": rotary(found, sizes, base=10_000.0),
    }


def _query_scale(found: Described, sizes: GgufSizes, layers_of_27b: int) -> int:
    """What queries are scaled by, as the square of 1 / scale. The file has no key for it.

    Models of 27B use the mean width of a head, all others 256. Like llama.cpp, this recognises them by their
    number of layers.
    """
    found.keys.integer("attention.key_length")
    return sizes.hidden // sizes.heads if sizes.layers == layers_of_27b else 256


def _gemma2(found: Described) -> dict[str, Any]:
    keys, sizes = found.keys, read_sizes(found)
    return (
        common_fields(found, sizes)
        | windows.alternating(keys, sizes.layers, 2)
        | {
            "model_type": "gemma2",
            "rope_parameters": rotary(found, sizes, base=10_000.0),
            "query_pre_attn_scalar": _query_scale(found, sizes, 46),
            "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
        }
    )


def _gemma3(found: Described) -> dict[str, Any]:
    keys, sizes = found.keys, read_sizes(found)
    capped = "final_logit_softcapping" in keys
    keys.ignore_below("mm.", "vision.")  # for the part about images, whose tensors are in a separate file
    return (
        common_fields(found, sizes)
        | windows.alternating(keys, sizes.layers, 6)
        | {
            "model_type": "gemma3_text",
            # Scaling applies to the layers with full attention.
            "rope_parameters": {
                "full_attention": rotary(found, sizes),
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": keys.number("rope.freq_base_swa", 10_000.0),
                },
            },
            "query_pre_attn_scalar": _query_scale(found, sizes, 62),
            "final_logit_softcapping": keys.number("final_logit_softcapping") if capped else None,
        }
    )


def _phi3(found: Described) -> dict[str, Any]:
    keys, sizes = found.keys, read_sizes(found)
    original = keys.integer("rope.scaling.original_context_length", sizes.context)
    return common_fields(found, sizes) | {
        "model_type": "phi3",
        "rope_parameters": rotary(found, sizes, partial=True),
        "original_max_position_embeddings": original,
        "sliding_window": windows.everywhere(keys),
    }


def _starcoder2(found: Described) -> dict[str, Any]:
    sizes = read_sizes(found)
    return sizes.fields() | {
        "model_type": "starcoder2",
        "vocab_size": found.size("token_embd.weight", 0),
        "intermediate_size": found.keys.integer("feed_forward_length"),
        "norm_epsilon": found.keys.number(LAYER_EPSILON),
        "rope_parameters": rotary(found, sizes),
        "sliding_window": windows.everywhere(found.keys),
        "use_bias": True,
        "tie_word_embeddings": not found.has("output.weight"),
    }


def _gpt2(found: Described) -> dict[str, Any]:
    keys, sizes = found.keys, read_sizes(found)
    if sizes.kv_heads != sizes.heads or sizes.head_dim * sizes.heads != sizes.hidden:
        keys.unsupported("attention.head_count_kv", f"is {sizes.kv_heads} of {sizes.heads}")
    if found.size("position_embd.weight", 0) != sizes.context:
        keys.bad(
            "context_length",
            f"is {sizes.context}, and there are {found.size('position_embd.weight', 0)} positions",
        )
    return {
        "model_type": "gpt2",
        "vocab_size": found.size("token_embd.weight", 0),
        "n_positions": sizes.context,
        "n_embd": sizes.hidden,
        "n_layer": sizes.layers,
        "n_head": sizes.heads,
        "n_inner": keys.integer("feed_forward_length"),
        "layer_norm_epsilon": keys.number(LAYER_EPSILON),
        "tie_word_embeddings": not found.has("output.weight"),
    }


def _gpt_oss(found: Described) -> dict[str, Any]:
    keys, sizes = found.keys, read_sizes(found)
    count, used = read_experts(found, normed=True, gating=3)
    width = keys.integer("expert_feed_forward_length", found.size("blk.0.ffn_down_exps.weight", -1))
    # Some files have the width of the experts here too, others 0.
    keys.expect("feed_forward_length", width, 0)
    return (
        sizes.fields()
        | windows.alternating(keys, sizes.layers, 2)
        | {
            "model_type": "gpt_oss",
            "vocab_size": found.size("token_embd.weight", 0),
            "intermediate_size": width,
            "rms_norm_eps": keys.number(RMS_EPSILON),
            "num_local_experts": count,
            "num_experts_per_tok": used,
            "rope_parameters": rotary(found, sizes, truncate=False),
            "tie_word_embeddings": not found.has("output.weight"),
        }
    )


def _olmo2(found: Described) -> dict[str, Any]:
    sizes = read_sizes(found)
    refuse_experts(found.keys)
    windows.nowhere(found.keys, sizes.context)
    return common_fields(found, sizes) | {
        "model_type": "olmo2",
        "rope_parameters": rotary(found, sizes),
    }


def _olmoe(found: Described) -> dict[str, Any]:
    keys, sizes = found.keys, read_sizes(found)
    count, used = read_experts(found, normed=False)
    fields = common_fields(found, sizes)
    keys.expect("expert_feed_forward_length", fields["intermediate_size"])
    return fields | {
        "model_type": "olmoe",
        "rope_parameters": rotary(found, sizes),
        "num_experts": count,
        "num_experts_per_tok": used,
        "norm_topk_prob": False,
        "clip_qkv": keys.number("attention.clamp_kqv") if "attention.clamp_kqv" in keys else None,
    }


def _granite(found: Described) -> dict[str, Any]:
    keys, sizes = found.keys, read_sizes(found)
    refuse_experts(keys)
    return (
        common_fields(found, sizes)
        | bias_fields(found)
        | {
            "model_type": "granite",
            "rope_parameters": rotary(found, sizes),
            "attention_multiplier": keys.number("attention.scale"),
            "embedding_multiplier": keys.number("embedding_scale"),
            "residual_multiplier": keys.number("residual_scale"),
            "logits_scaling": keys.number("logit_scale"),
        }
    )


def _cohere(model_type: str, *, period: int | None) -> Callable[[Described], dict[str, Any]]:
    def config(found: Described) -> dict[str, Any]:
        keys, sizes = found.keys, read_sizes(found)
        fields = sizes.fields() | {
            "model_type": model_type,
            "vocab_size": found.size("token_embd.weight", 0),
            "intermediate_size": keys.integer("feed_forward_length"),
            "layer_norm_eps": keys.number(LAYER_EPSILON),
            "logit_scale": keys.number("logit_scale"),
            "rope_parameters": rotary(found, sizes),
            "tie_word_embeddings": not found.has("output.weight"),
        }
        if period is None:
            windows.nowhere(keys, sizes.context)
            return fields
        return fields | windows.alternating(keys, sizes.layers, period)

    return config


def _smollm3(found: Described) -> dict[str, Any]:
    sizes = read_sizes(found)
    windows.nowhere(found.keys, sizes.context)
    return (
        common_fields(found, sizes)
        | bias_fields(found)
        # Every fourth layer has no positions; the file has no key for it.
        | {
            "model_type": "smollm3",
            "rope_parameters": rotary(found, sizes),
            "no_rope_layer_interval": 4,
        }
    )


def _glm4(found: Described) -> dict[str, Any]:
    sizes = read_sizes(found)
    windows.nowhere(found.keys, sizes.context)
    return common_fields(found, sizes) | {
        "model_type": "glm4",
        "rope_parameters": rotary(found, sizes, partial=True),
        "attention_bias": found.has("blk.0.attn_q.bias"),
    }


def _seed_oss(found: Described) -> dict[str, Any]:
    sizes = read_sizes(found)
    windows.nowhere(found.keys, sizes.context)
    return common_fields(found, sizes) | {
        "model_type": "seed_oss",
        "rope_parameters": rotary(found, sizes),
        "attention_bias": found.has("blk.0.attn_q.bias"),
        "attention_out_bias": found.has("blk.0.attn_output.bias"),
    }


GGUF_ARCHITECTURES: Mapping[str, GgufArchitecture] = {
    "cohere2": GgufArchitecture(MODEL_ARCH.COHERE2, _cohere("cohere2", period=4)),
    "command-r": GgufArchitecture(MODEL_ARCH.COMMAND_R, _cohere("cohere", period=None)),
    "gemma": GgufArchitecture(MODEL_ARCH.GEMMA, _gemma, raised_norms=True),
    "gemma2": GgufArchitecture(MODEL_ARCH.GEMMA2, _gemma2, raised_norms=True),
    "gemma3": GgufArchitecture(MODEL_ARCH.GEMMA3, _gemma3, raised_norms=True),
    "glm4": GgufArchitecture(MODEL_ARCH.GLM4, _glm4),
    "gpt-oss": GgufArchitecture(MODEL_ARCH.GPT_OSS, _gpt_oss),
    "gpt2": GgufArchitecture(MODEL_ARCH.GPT2, _gpt2),
    "granite": GgufArchitecture(MODEL_ARCH.GRANITE, _granite, paired=True),
    "llama": GgufArchitecture(MODEL_ARCH.LLAMA, _llama, paired=True),
    "olmo2": GgufArchitecture(MODEL_ARCH.OLMO2, _olmo2),
    "olmoe": GgufArchitecture(MODEL_ARCH.OLMOE, _olmoe),
    "phi3": GgufArchitecture(MODEL_ARCH.PHI3, _phi3),
    "qwen2": GgufArchitecture(MODEL_ARCH.QWEN2, _qwen("qwen2")),
    "qwen2moe": GgufArchitecture(MODEL_ARCH.QWEN2MOE, _qwen_experts("qwen2_moe", normed=False, shared=True)),
    "qwen3": GgufArchitecture(MODEL_ARCH.QWEN3, _qwen("qwen3")),
    "qwen3moe": GgufArchitecture(MODEL_ARCH.QWEN3MOE, _qwen_experts("qwen3_moe", normed=True, shared=False)),
    "seed_oss": GgufArchitecture(MODEL_ARCH.SEED_OSS, _seed_oss),
    "smollm3": GgufArchitecture(MODEL_ARCH.SMOLLM3, _smollm3, paired=True),
    "starcoder2": GgufArchitecture(MODEL_ARCH.STARCODER2, _starcoder2),
}
"""Architectures by their names in `general.architecture`."""
