"""Sizes of published models against the counts that their makers give, and configs that say too little."""

from typing import Any

import pytest

from tokenmux.core.errors import ConfigError
from tokenmux.simulator.planner.config_facts import facts_of_config
from tokenmux.simulator.planner.parameter_count import count_parameters


def config(
    kind: str, hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
        **more,
    }


LLAMA = config("llama", 4096, 14336, 32, 32, 8, 128256, tie_word_embeddings=False, torch_dtype="bfloat16")
PUBLISHED = [
    (LLAMA, 8_030_261_248),
    (config("qwen2", 3584, 18944, 28, 28, 4, 152064, tie_word_embeddings=False), 7_615_616_512),
    (config("gemma2", 3584, 14336, 42, 16, 8, 256000, head_dim=256), 9_241_705_984),
    (config("mixtral", 4096, 14336, 32, 32, 8, 32000, num_local_experts=8, num_experts_per_tok=2),
     46_702_792_704),
    (config("qwen3_moe", 2048, 6144, 48, 32, 4, 151936, head_dim=128, num_experts=128, num_experts_per_tok=8,
            moe_intermediate_size=768, tie_word_embeddings=False), 30_532_122_624),
    (config("gpt_oss", 2880, 2880, 24, 64, 8, 201088, head_dim=64, num_local_experts=32,
            num_experts_per_tok=4,
            attention_bias=True), 20_914_757_184),
    ({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
      "vocab_size": 50257},
     124_439_808),
]  # fmt: skip


@pytest.mark.parametrize(("published", "n_parameters"), PUBLISHED)
def test_published_models_have_their_published_size(published: dict[str, Any], n_parameters: int) -> None:
    assert count_parameters(published).total == n_parameters


def test_facts_of_a_config() -> None:
    facts = facts_of_config("mine", LLAMA)
    assert (facts.id, facts.n_bytes) == ("mine", 2 * 8_030_261_248)
    assert (facts.kv.n_layers, facts.kv.n_kv_heads, facts.kv.head_dim, facts.kv.dtype_bytes) == (
        32,
        8,
        128,
        2,
    )
    assert facts.n_parameters == 8_030_261_248 - 128256 * 4096, "without the table of embeddings"
    assert facts_of_config("f32", {**LLAMA, "torch_dtype": "float32"}).n_bytes == 4 * 8_030_261_248


def test_the_text_part_of_a_model_that_also_sees_counts() -> None:
    assert count_parameters({"model_type": "vision", "text_config": LLAMA}).total == 8_030_261_248


def test_longrope_is_served_up_to_its_original_context() -> None:
    scaled = {**LLAMA, "rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096}
    assert facts_of_config("m", scaled).max_context == 4096


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is not one whose size"),
        ({"model_type": None}, "model_type .None."),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": "many"}, "vocab_size is 'many', and must be a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"torch_dtype": "int4"}, "dtype is 'int4'"),
    ],
)
def test_a_config_that_says_too_little_is_told_what(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        facts_of_config("m", {**LLAMA, **changes})
