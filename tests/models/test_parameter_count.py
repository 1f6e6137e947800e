"""Sizes told from a config.json against what transformers really builds of it, on the meta device."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tokenmux.models.catalogue.model_facts import active_parameters, kv_shape, max_context
from tokenmux.simulator.planner.config_facts import facts_of_config
from tokenmux.simulator.planner.model_types import MODEL_TYPES
from tokenmux.simulator.planner.parameter_count import count_parameters

COMMON: dict[str, Any] = {
    "vocab_size": 32_003,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 96,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_GROUPS = {"num_key_value_heads": None, "head_dim": None}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 192}
SIZES: dict[str, dict[str, Any]] = {
    "cohere": {"head_dim": None},
    "gpt2": NO_GROUPS,
    "gpt_neox": NO_GROUPS,
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "opt": {**NO_GROUPS, "ffn_dim": 1376, "word_embed_proj_dim": 512, "intermediate_size": None},
    "phi": {"head_dim": None},
    "phi3": {"head_dim": None},
    "qwen2": {"head_dim": None},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 640, "head_dim": None,
                  "decoder_sparse_step": 2},
    "qwen3_moe": {**EXPERTS, "mlp_only_layers": [0]},
    "starcoder2": {"head_dim": None},
}  # fmt: skip


def config_of(family: str, **changes: Any) -> Any:
    sizes = {**COMMON, **SIZES.get(family, {}), **changes}
    return AutoConfig.for_model(family, **{key: value for key, value in sizes.items() if value is not None})


@pytest.mark.parametrize("tied", [None, False, True])
@pytest.mark.parametrize("family", sorted(MODEL_TYPES))
def test_counts_are_those_of_the_modules(family: str, tied: bool | None) -> None:
    config = config_of(family) if tied is None else config_of(family, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    counts = count_parameters(json.loads(config.to_json_string()))
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    assert counts.active == pytest.approx(active_parameters(model), rel=1e-3)


@pytest.mark.parametrize("family", sorted(MODEL_TYPES))
def test_the_kv_cache_and_the_context_are_those_of_a_served_model(family: str) -> None:
    config = config_of(family, dtype="bfloat16")
    facts = facts_of_config("m", json.loads(config.to_json_string()))
    assert facts.kv == kv_shape(config, torch.bfloat16)
    assert facts.max_context == max_context(config)
    assert facts.vocab_size == COMMON["vocab_size"]


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "glm", "starcoder2", "gpt_oss", "gpt_neox"])
@pytest.mark.parametrize("bias", [False, True])
def test_biases_are_counted_where_the_config_asks_for_them(family: str, bias: bool) -> None:
    config = config_of(family, attention_bias=bias, mlp_bias=bias, use_bias=bias)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    counted = count_parameters(json.loads(config.to_json_string())).total
    assert counted == sum(parameter.numel() for parameter in model.parameters())
