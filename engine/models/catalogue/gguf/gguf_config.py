"""The config of each architecture, from the file's metadata: one function each, over what all of them share.

A number that decides a result is required if the converters of llama.cpp always write it; only numbers that
they leave out have defaults. Sizes are compared with the tensors here already, since a skeleton is built from
them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import MODEL_ARCH

from tokenmux.core.errors import BadCheckpoint, UnsupportedModel
from tokenmux.models.catalogue.gguf import windows
from tokenmux.models.catalogue.gguf.header import GgufTensor
from tokenmux.models.catalogue.gguf.keys import Keys
from tokenmux.models.catalogue.gguf.rotary_factors import rope_parameters

_RMS, _LAYER = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
_LLAMA_LAYOUT = "Meta AI original pth"
_LARGEST_CONTEXT = 1 << 27


@dataclass(frozen=True, slots=True)
class Described:
    """The sources of a config: the keys of the architecture, the tensors, and the values of those with rotary
    factors."""

    keys: Keys
    tensors: Mapping[str, GgufTensor]
    factors: Mapping[str, Sequence[float]]
    old_vocabulary: bool
    """True if the tokenizer is SentencePiece's: such files may be older than the key `rope.freq_base`."""

    def has(self, name: str) -> bool:
        """True if the file has the tensor."""
        return name in self.tensors

    def size(self, name: str, axis: int) -> int:
        """Size of a tensor along `axis`. Raises BadCheckpoint if the tensor or the axis is missing."""
        if name not in self.tensors:
            raise BadCheckpoint(f"{self.keys.file}: the tensor {name} is missing")
        shape = self.tensors[name].shape
        if not -len(shape) <= axis < len(shape):
            raise BadCheckpoint(f"{self.keys.file}: the tensor {name} has the shape {list(shape)}")
        return shape[axis]


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


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Sizes that every architecture has."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int

    def fields(self) -> dict[str, Any]:
        """The sizes under the names that most configs have."""
        return {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
        }


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


POOLING_MODES: Mapping[int, str | None] = {0: None, 1: "mean", 2: "cls", 3: "lasttoken"}
"""Pooling types by the names of sentence-transformers. The fourth of llama.cpp's ranks documents."""


def _sizes(found: Described) -> _Sizes:
    keys = found.keys
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    sizes = _Sizes(
        hidden=hidden,
        layers=keys.integer("block_count"),
        heads=heads,
        kv_heads=keys.integer("attention.head_count_kv", heads),
        head_dim=keys.integer("attention.key_length", max(hidden // heads, 1)),
        context=keys.integer("context_length"),
    )
    if sizes.context > _LARGEST_CONTEXT:
        keys.bad("context_length", f"is {sizes.context}")
    if heads % sizes.kv_heads:
        keys.bad("attention.head_count_kv", f"is {sizes.kv_heads}, which does not divide {heads} heads")
    keys.expect("attention.value_length", sizes.head_dim)
    keys.expect("attention.causal", True)
    keys.expect("pooling_type", *POOLING_MODES)
    keys.expect("tensor_data_layout", _LLAMA_LAYOUT)
    keys.expect("vocab_size", found.size("token_embd.weight", 0))
    if found.size("token_embd.weight", -1) != hidden:
        keys.bad(
            "embedding_length", f"is {hidden}, and the embedding has {found.size('token_embd.weight', -1)}"
        )
    _check_layers(found, sizes.layers)
    rows, expected = "blk.0.attn_q.weight", sizes.head_dim * heads
    if not found.has(rows):
        rows, expected = "blk.0.attn_qkv.weight", sizes.head_dim * (heads + 2 * sizes.kv_heads)
    if found.size(rows, 0) != expected:
        raise BadCheckpoint(
            f"{keys.file}: {rows} has {found.size(rows, 0)} rows, not {expected} for {heads} and "
            f"{sizes.kv_heads} heads of {sizes.head_dim} "
            "(attention.head_count, attention.head_count_kv, attention.key_length)"
        )
    return sizes


def _check_layers(found: Described, n_layers: int) -> None:
    """Raise unless exactly these layers are there: counts are compared before they are believed."""
    numbers = {part for name in found.tensors if name.startswith("blk.") for part in name.split(".")[1:2]}
    if len(numbers) != n_layers or numbers != {str(number) for number in range(n_layers)}:
        found.keys.bad("block_count", f"is {n_layers}, and there are tensors of {len(numbers)} layers")


def _rope(
    found: Described,
    sizes: _Sizes,
    *,
    base: float | None = None,
    partial: bool = False,
    truncate: bool | None = None,
) -> dict[str, Any]:
    """Rotary parameters.

    `base` is the default of `rope.freq_base`; `partial` allows fewer rotated dimensions than a head has.
    """
    keys = found.keys
    # An architecture with part of its heads rotated must say how much; others rotate all.
    rotated = keys.integer("rope.dimension_count", None if partial else sizes.head_dim)
    if rotated > sizes.head_dim or rotated % 2 or (rotated != sizes.head_dim and not partial):
        keys.unsupported("rope.dimension_count", f"is {rotated} of {sizes.head_dim}")
    made = rope_parameters(
        keys,
        found.factors,
        base=keys.number("rope.freq_base", base),
        rotated=rotated,
        context=sizes.context,
        truncate=truncate,
    )
    return made | {"partial_rotary_factor": rotated / sizes.head_dim} if partial else made


def _common(found: Described, sizes: _Sizes) -> dict[str, Any]:
    """Fields of architectures with RMS norms and gated layers."""
    return sizes.fields() | {
        "vocab_size": found.size("token_embd.weight", 0),
        "intermediate_size": found.keys.integer("feed_forward_length"),
        "rms_norm_eps": found.keys.number(_RMS),
        "tie_word_embeddings": not found.has("output.weight"),
    }


def _dense(keys: Keys) -> None:
    for name in ("expert_count", "expert_used_count"):
        keys.expect(name, 0)


def _experts(found: Described, *, normed: bool, gating: int = 1) -> tuple[int, int]:
    """Number of experts, and how many of them a token uses. All other keys about experts must have their
    usual values."""
    keys = found.keys
    count, used = keys.integer("expert_count"), keys.integer("expert_used_count")
    if count != found.size("blk.0.ffn_gate_inp.weight", 0):
        keys.bad(
            "expert_count", f"is {count}, and the router has {found.size('blk.0.ffn_gate_inp.weight', 0)}"
        )
    if used > count:
        keys.bad("expert_used_count", f"is {used} of {count}")
    keys.expect("expert_gating_func", 0, gating)
    keys.expect("expert_weights_norm", normed)
    keys.expect("expert_weights_scale", 0.0, 1.0)
    for name in (
        "expert_group_count",
        "expert_group_used_count",
        "moe_every_n_layers",
        "interleave_moe_layer_step",
    ):
        keys.expect(name, 0, 1)
    keys.expect("leading_dense_block_count", 0)
    return count, used


def _llama(found: Described) -> dict[str, Any]:
    """Llama, and what is stored under its name: Mistral (with a window) and Mixtral (with experts)."""
    keys, sizes = found.keys, _sizes(found)
    fields = _common(found, sizes) | {
        "rope_parameters": _rope(found, sizes, base=10_000.0 if found.old_vocabulary else None)
    }
    window = windows.everywhere(keys)
    if "expert_count" in keys and keys.integer("expert_count", least=0):
        count, used = _experts(found, normed=True)
        keys.expect("expert_feed_forward_length", fields["intermediate_size"])
        experts = {"num_local_experts": count, "num_experts_per_tok": used}
        return fields | experts | {"model_type": "mixtral", "sliding_window": window}
    _dense(keys)
    if window is not None:
        return fields | {"model_type": "mistral", "sliding_window": window}
    return fields | {"model_type": "llama"} | _biases(found)


def _biases(found: Described) -> dict[str, Any]:
    return {"attention_bias": found.has("blk.0.attn_q.bias"), "mlp_bias": found.has("blk.0.ffn_gate.bias")}


def _qwen(model_type: str) -> Callable[[Described], dict[str, Any]]:
    def config(found: Described) -> dict[str, Any]:
        sizes = _sizes(found)
        _dense(found.keys)
        windows.nowhere(found.keys, sizes.context)
        return _common(found, sizes) | {"model_type": model_type, "rope_parameters": _rope(found, sizes)}

    return config


def _qwen_experts(model_type: str, *, normed: bool, shared: bool) -> Callable[[Described], dict[str, Any]]:
    def config(found: Described) -> dict[str, Any]:
        keys, sizes = found.keys, _sizes(found)
        count, used = _experts(found, normed=normed)
        windows.nowhere(keys, sizes.context)
        fields = _common(found, sizes) | {
            "model_type": model_type,
            "rope_parameters": _rope(found, sizes),
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
    sizes = _sizes(found)
    found.keys.integer("attention.key_length")
    windows.nowhere(found.keys, sizes.context)
    return _common(found, sizes) | {
        "model_type": "gemma",
        "rope_parameters": _rope(found, sizes, base=10_000.0),
    }


def _query_scale(found: Described, sizes: _Sizes, layers_of_27b: int) -> int:
    """What queries are scaled by, as the square of 1 / scale. The file has no key for it.

    Models of 27B use the mean width of a head, all others 256. Like llama.cpp, this recognises them by their
    number of layers.
    """
    found.keys.integer("attention.key_length")
    return sizes.hidden // sizes.heads if sizes.layers == layers_of_27b else 256


def _gemma2(found: Described) -> dict[str, Any]:
    keys, sizes = found.keys, _sizes(found)
    return (
        _common(found, sizes)
        | windows.alternating(keys, sizes.layers, 2)
        | {
            "model_type": "gemma2",
            "rope_parameters": _rope(found, sizes, base=10_000.0),
            "query_pre_attn_scalar": _query_scale(found, sizes, 46),
            "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
        }
    )


def _gemma3(found: Described) -> dict[str, Any]:
    keys, sizes = found.keys, _sizes(found)
    capped = "final_logit_softcapping" in keys
    keys.ignore_below("mm.", "vision.")  # for the part about images, whose tensors are in a separate file
    return (
        _common(found, sizes)
        | windows.alternating(keys, sizes.layers, 6)
        | {
            "model_type": "gemma3_text",
            # Scaling applies to the layers with full attention.
            "rope_parameters": {
                "full_attention": _rope(found, sizes),
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
    keys, sizes = found.keys, _sizes(found)
    original = keys.integer("rope.scaling.original_context_length", sizes.context)
    return _common(found, sizes) | {
        "model_type": "phi3",
        "rope_parameters": _rope(found, sizes, partial=True),
        "original_max_position_embeddings": original,
        "sliding_window": windows.everywhere(keys),
    }


def _starcoder2(found: Described) -> dict[str, Any]:
    sizes = _sizes(found)
    return sizes.fields() | {
        "model_type": "starcoder2",
        "vocab_size": found.size("token_embd.weight", 0),
        "intermediate_size": found.keys.integer("feed_forward_length"),
        "norm_epsilon": found.keys.number(_LAYER),
        "rope_parameters": _rope(found, sizes),
        "sliding_window": windows.everywhere(found.keys),
        "use_bias": True,
        "tie_word_embeddings": not found.has("output.weight"),
    }


def _gpt2(found: Described) -> dict[str, Any]:
    keys, sizes = found.keys, _sizes(found)
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
        "layer_norm_epsilon": keys.number(_LAYER),
        "tie_word_embeddings": not found.has("output.weight"),
    }


def _gpt_oss(found: Described) -> dict[str, Any]:
    keys, sizes = found.keys, _sizes(found)
    count, used = _experts(found, normed=True, gating=3)
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
            "rms_norm_eps": keys.number(_RMS),
            "num_local_experts": count,
            "num_experts_per_tok": used,
            "rope_parameters": _rope(found, sizes, truncate=False),
            "tie_word_embeddings": not found.has("output.weight"),
        }
    )


def _olmo2(found: Described) -> dict[str, Any]:
    sizes = _sizes(found)
    _dense(found.keys)
    windows.nowhere(found.keys, sizes.context)
    return _common(found, sizes) | {"model_type": "olmo2", "rope_parameters": _rope(found, sizes)}


def _olmoe(found: Described) -> dict[str, Any]:
    keys, sizes = found.keys, _sizes(found)
    count, used = _experts(found, normed=False)
    fields = _common(found, sizes)
    keys.expect("expert_feed_forward_length", fields["intermediate_size"])
    return fields | {
        "model_type": "olmoe",
        "rope_parameters": _rope(found, sizes),
        "num_experts": count,
        "num_experts_per_tok": used,
        "norm_topk_prob": False,
        "clip_qkv": keys.number("attention.clamp_kqv") if "attention.clamp_kqv" in keys else None,
    }


def _granite(found: Described) -> dict[str, Any]:
    keys, sizes = found.keys, _sizes(found)
    _dense(keys)
    return (
        _common(found, sizes)
        | _biases(found)
        | {
            "model_type": "granite",
            "rope_parameters": _rope(found, sizes),
            "attention_multiplier": keys.number("attention.scale"),
            "embedding_multiplier": keys.number("embedding_scale"),
            "residual_multiplier": keys.number("residual_scale"),
            "logits_scaling": keys.number("logit_scale"),
        }
    )


def _cohere(model_type: str, *, period: int | None) -> Callable[[Described], dict[str, Any]]:
    def config(found: Described) -> dict[str, Any]:
        keys, sizes = found.keys, _sizes(found)
        fields = sizes.fields() | {
            "model_type": model_type,
            "vocab_size": found.size("token_embd.weight", 0),
            "intermediate_size": keys.integer("feed_forward_length"),
            "layer_norm_eps": keys.number(_LAYER),
            "logit_scale": keys.number("logit_scale"),
            "rope_parameters": _rope(found, sizes),
            "tie_word_embeddings": not found.has("output.weight"),
        }
        if period is None:
            windows.nowhere(keys, sizes.context)
            return fields
        return fields | windows.alternating(keys, sizes.layers, period)

    return config


def _smollm3(found: Described) -> dict[str, Any]:
    sizes = _sizes(found)
    windows.nowhere(found.keys, sizes.context)
    return (
        _common(found, sizes)
        | _biases(found)
        # Every fourth layer has no positions; the file has no key for it.
        | {"model_type": "smollm3", "rope_parameters": _rope(found, sizes), "no_rope_layer_interval": 4}
    )


def _glm4(found: Described) -> dict[str, Any]:
    sizes = _sizes(found)
    windows.nowhere(found.keys, sizes.context)
    return _common(found, sizes) | {
        "model_type": "glm4",
        "rope_parameters": _rope(found, sizes, partial=True),
        "attention_bias": found.has("blk.0.attn_q.bias"),
    }


def _seed_oss(found: Described) -> dict[str, Any]:
    sizes = _sizes(found)
    windows.nowhere(found.keys, sizes.context)
    return _common(found, sizes) | {
        "model_type": "seed_oss",
        "rope_parameters": _rope(found, sizes),
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
