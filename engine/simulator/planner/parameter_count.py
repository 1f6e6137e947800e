"""How many parameters a model has, from its config.json alone: no weights, no modelling code, nothing to
install."""

from dataclasses import dataclass

from tokenmux.core.errors import ConfigError
from tokenmux.simulator.planner.config_values import Config, head_dim, n_kv_heads, number, text_part
from tokenmux.simulator.planner.model_types import MODEL_TYPES, Flag, ModelType


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of parameters. `active`: those that one token is multiplied with (no look-up tables, only the
    chosen experts)."""

    total: int
    active: int


def count_parameters(config: Config) -> Counts:
    """Count the parameters of the causal language model that `config` describes. Raises ConfigError."""
    text = text_part(config)
    kind = _model_type(text)
    hidden, vocabulary = number(text, "hidden_size"), number(text, "vocab_size")
    norm = hidden * (2 if kind.norm_bias else 1)
    rest = _attention(kind, text) + kind.norms * norm
    dense, routed, chosen = _feed_forward(kind, text)
    n_layers = number(text, "num_hidden_layers")
    n_dense = _dense_layers(text, n_layers) if kind.experts else n_layers
    plain = _mlp(kind, text, _inner(text)) if n_dense else 0
    embedding = vocabulary * hidden
    tied = bool(text.get("tie_word_embeddings", kind.tied))
    head = 0 if tied else embedding
    head += vocabulary if kind.head_bias else 0
    offset = 2 if text.get("model_type") == "opt" else 0
    positions = (number(text, "max_position_embeddings") + offset) * hidden if kind.positions else 0
    n_sparse = n_layers - n_dense
    body = n_layers * rest + n_dense * plain + n_sparse * dense + norm
    total = embedding + positions + body + n_sparse * routed + head
    active = body + n_sparse * chosen + (embedding if tied else 0) + head
    return Counts(total, active)


def _attention(kind: ModelType, config: Config) -> int:
    hidden, dim = number(config, "hidden_size"), head_dim(config)
    q, kv = number(config, "num_attention_heads") * dim, n_kv_heads(config) * dim
    n = hidden * (q + 2 * kv) + q * hidden
    n += q + 2 * kv if _flag(kind.qkv_bias, config) else 0
    n += hidden if _flag(kind.out_bias, config) else 0
    n += {"": 0, "head": 2 * dim, "all": q + kv}[kind.qk_norm]
    if config.get("use_qk_norm"):
        n += q + kv
    if config.get("qk_layernorm"):
        n += 4 * dim
    return n + (number(config, "num_attention_heads") if kind.sinks else 0)


def _mlp(kind: ModelType, config: Config, inner: int) -> int:
    hidden = number(config, "hidden_size")
    n_up = 2 if kind.gated else 1
    bias = n_up * inner + hidden if _flag(kind.mlp_bias, config) else 0
    return (n_up + 1) * hidden * inner + bias


def _feed_forward(kind: ModelType, config: Config) -> tuple[int, int, int]:
    """Parameters of a layer with experts: those that every token uses, all experts, and the experts that one
    token uses."""
    if not kind.experts:
        return 0, 0, 0
    hidden, inner = number(config, "hidden_size"), number(config, kind.expert_size)
    n_experts, n_chosen = number(config, kind.experts), number(config, "num_experts_per_tok")
    each = 3 * hidden * inner
    dense = n_experts * hidden
    if kind.expert_bias:
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


def _model_type(config: Config) -> ModelType:
    name = str(config.get("model_type"))
    if name not in MODEL_TYPES:
        known = ", ".join(sorted(MODEL_TYPES))
        raise ConfigError(
            f"model_type {name!r} is not one whose size can be told from its config (these are: {known}); "
            "plan with the name of an architecture of about its size instead, as NAME=ARCHITECTURE"
        )
    return MODEL_TYPES[name]


def _inner(config: Config) -> int:
    if config.get("model_type") == "gpt2" and config.get("n_inner") is None:
        return 4 * number(config, "hidden_size")
    return number(config, "intermediate_size")


def _flag(flag: Flag, config: Config) -> bool:
    return bool(config.get(flag, False)) if isinstance(flag, str) else flag
