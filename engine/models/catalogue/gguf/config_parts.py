"""What the configs of all architectures in GGUF files share: sizes, rotary parameters, experts.

A number that decides a result is required if the converters of llama.cpp always write it; only numbers that
they leave out have defaults. Sizes are compared with the tensors here already, since a skeleton is built from
them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmux.core.errors import BadCheckpoint
from tokenmux.models.catalogue.config_limits import MOST_LAYERS
from tokenmux.models.catalogue.gguf.header import GgufTensor
from tokenmux.models.catalogue.gguf.keys import Keys
from tokenmux.models.catalogue.gguf.rotary_factors import rope_parameters

RMS_EPSILON, LAYER_EPSILON = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
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
class GgufSizes:
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


POOLING_MODES: Mapping[int, str | None] = {0: None, 1: "mean", 2: "cls", 3: "lasttoken"}
"""Pooling types by the names of sentence-transformers. The fourth of llama.cpp's ranks documents."""


def read_sizes(found: Described) -> GgufSizes:
    """Sizes by the keys, compared with the tensors. Raises BadCheckpoint or UnsupportedModel."""
    keys = found.keys
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    sizes = GgufSizes(
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
    if n_layers > MOST_LAYERS:
        found.keys.bad("block_count", f"is {n_layers}, and models have at most {MOST_LAYERS} layers")


def rotary(
    found: Described,
    sizes: GgufSizes,
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


def common_fields(found: Described, sizes: GgufSizes) -> dict[str, Any]:
    """Fields of architectures with RMS norms and gated layers."""
    return sizes.fields() | {
        "vocab_size": found.size("token_embd.weight", 0),
        "intermediate_size": found.keys.integer("feed_forward_length"),
        "rms_norm_eps": found.keys.number(RMS_EPSILON),
        "tie_word_embeddings": not found.has("output.weight"),
    }


def refuse_experts(keys: Keys) -> None:
    """Raise unless the keys about experts say that there are none."""
    for name in ("expert_count", "expert_used_count"):
        keys.expect(name, 0)


def read_experts(found: Described, *, normed: bool, gating: int = 1) -> tuple[int, int]:
    """The number of experts, and how many of them a token uses. All other keys about experts must have their
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


def bias_fields(found: Described) -> dict[str, Any]:
    """The fields of Llama's config that say which biases there are, as the tensors show."""
    return {"attention_bias": found.has("blk.0.attn_q.bias"), "mlp_bias": found.has("blk.0.ffn_gate.bias")}
