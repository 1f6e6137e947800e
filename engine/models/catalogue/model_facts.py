"""What scheduling and memory need to know about a model, read from its config and its weight image."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from tokenmux.core.errors import UnsupportedModel
from tokenmux.core.facts import BLOCK_TOKENS, KvShape, ModelFacts, ModelId
from tokenmux.models.catalogue.fact_limits import check_facts
from tokenmux.models.network.shape_run import ShapeRun, run_for_shapes
from tokenmux.models.weights.image import DTYPES
from tokenmux.models.weights.manifest import Manifest


def model_facts(
    name: str, model: PreTrainedModel, manifest: Manifest, *, block_size: int = BLOCK_TOKENS
) -> ModelFacts:
    """The facts of the catalogue entry `name`; `model` is the empty model of its config.

    Raises UnsupportedModel for impossible numbers.
    """
    config = model.config.get_text_config()
    facts = ModelFacts(
        id=ModelId(name),
        images=(manifest.image_of(name),),
        kv=kv_shape_of(model, DTYPES[manifest.dtype], block_size),
        max_context=max_context(config),
        n_parameters=active_parameters(model),
        vocab_size=int(config.vocab_size),
    )
    return check_facts(facts)


def kv_shape_of(model: PreTrainedModel, dtype: torch.dtype, block_size: int = BLOCK_TOKENS) -> KvShape:
    """The shape of a model's KV blocks, by what its layers pass to attention: a config may have keys that
    the model does not read, such as `head_dim`. A model that cannot run for shapes alone has the shape that
    its config says.

    Raises UnsupportedModel if layers differ.
    """
    by_config = kv_shape(model.config.get_text_config(), dtype, block_size)
    run = shape_run_of(model)
    return by_config if run is None or not run.calls else _heard_shape(run, by_config)


def shape_run_of(model: PreTrainedModel) -> ShapeRun | None:
    """The shapes of an empty model, which is kept as it is; None if it cannot run for shapes alone."""
    try:
        return run_for_shapes(deepcopy(model))
    except Exception:  # noqa: BLE001 - modelling code is foreign, and raises what it likes
        return None


def _heard_shape(run: ShapeRun, by_config: KvShape) -> KvShape:
    shapes = {(call.n_kv_heads, call.head_dim, call.value_dim) for call in run.calls.values()}
    if len(shapes) > 1:
        raise UnsupportedModel("its layers have keys of different numbers or widths, which is not supported")
    ((n_kv_heads, head_dim, value_dim),) = shapes
    if head_dim != value_dim:
        raise UnsupportedModel(f"its values are {value_dim} numbers wide and its keys {head_dim}")
    return replace(by_config, n_kv_heads=n_kv_heads, head_dim=head_dim)


def kv_shape(config: PreTrainedConfig, dtype: torch.dtype, block_size: int = BLOCK_TOKENS) -> KvShape:
    """The shape of a model's KV blocks as its config says."""
    n_heads = int(config.num_attention_heads)
    n_kv_heads = int(getattr(config, "num_key_value_heads", None) or n_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // n_heads)
    nope, rope = (getattr(config, f"qk_{part}_head_dim", None) for part in ("nope", "rope"))
    if nope is not None and rope is not None and getattr(config, "kv_lora_rank", None):
        # Latent attention: each head has its own keys, and values that are as narrow or narrower, which are
        # padded.
        n_kv_heads, head_dim = n_heads, max(int(nope) + int(rope), int(config.v_head_dim))
    return KvShape(
        n_layers=int(config.num_hidden_layers),
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        dtype_bytes=dtype.itemsize,
        block_size=block_size,
    )


def hidden_width(model: PreTrainedModel) -> int:
    """The number of dimensions of what the model's head reads."""
    weight = getattr(model.get_output_embeddings(), "weight", None)  # type: ignore[no-untyped-call]
    return int(model.config.get_text_config().hidden_size if weight is None else weight.shape[-1])


def max_context(config: PreTrainedConfig) -> int:
    """The longest context, in tokens, with which the model is served.

    Rotary scaling of type longrope switches to other factors for every row of a step once one row passes the
    original context. So such a model is served only up to that length, where other rows in the step make no
    difference.
    """
    limit = int(config.max_position_embeddings)
    for parameters in _rope_parameters(config):
        if parameters.get("rope_type") == "longrope":
            original = parameters.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            limit = min(limit, original or limit)
    return limit


def active_parameters(model: PreTrainedModel) -> int:
    """Number of weights that one token's pass multiplies with: no look-up tables, and only the chosen
    experts."""
    config = model.config.get_text_config()
    n_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    share = (getattr(config, "num_experts_per_tok", None) or 1) / n_experts if n_experts else 1.0
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    projected = getattr(output, "weight", None)
    total = 0.0
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, torch.nn.Embedding) and parameter is not projected:
                continue
            if module is output and any(parameter is p for p in _embedding_weights(model)):
                continue  # tied: counted as the embedding's
            total += parameter.numel() * (share if n_experts and parameter.ndim == 3 else 1.0)
    return round(total)


def _embedding_weights(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            yield module.weight


def _rope_parameters(config: PreTrainedConfig) -> Iterator[dict[str, Any]]:
    """Rotary parameters of a config: one dictionary, or one per kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        yield parameters
    else:
        yield from (value for value in parameters.values() if isinstance(value, dict))
