"""Architectures with something of their own: latent attention, experts, steps that are not handed on,
strict configs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from tokenmux.models.catalogue.model_facts import kv_shape
from tokenmux.models.catalogue.probe import image_in_memory, probe
from tokenmux.models.network.runner import Runner
from tokenmux.models.network.skeleton import Skeleton, state_names

GRID = 16
N_OUTPUT = 10

COMMON = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LATENT = {
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "kv_lora_rank": 64,
    "q_lora_rank": 64,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
EXPERTS = {"num_key_value_heads": 2, "num_experts": 8, "num_experts_per_tok": 2}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "deepseek_v2": lambda: AutoConfig.for_model("deepseek_v2", **COMMON, **LATENT, head_dim=16),
    "deepseek_v3": lambda: AutoConfig.for_model("deepseek_v3", **COMMON, **LATENT),
    "glm4_moe_lite": lambda: AutoConfig.for_model("glm4_moe_lite", **COMMON, **LATENT),
    "qwen3_moe": lambda: AutoConfig.for_model(
        "qwen3_moe", **COMMON | EXPERTS, head_dim=32, moe_intermediate_size=64, mlp_only_layers=[1]
    ),
    "olmoe": lambda: AutoConfig.for_model("olmoe", **COMMON | EXPERTS),
    "granitemoe": lambda: AutoConfig.for_model(
        "granitemoe", **COMMON, num_local_experts=8, num_experts_per_tok=2, attention_multiplier=0.2
    ),
    "stablelm": lambda: AutoConfig.for_model("stablelm", **COMMON | {"num_key_value_heads": 2}),
    "nemotron": lambda: AutoConfig.for_model("nemotron", **COMMON | {"num_key_value_heads": 2}, head_dim=32),
    "cwm": lambda: AutoConfig.for_model(
        "cwm", **COMMON | {"num_key_value_heads": 2}, head_dim=32, sliding_window=24
    ),
    "modernbert-decoder": lambda: AutoConfig.for_model("modernbert-decoder", **COMMON, local_attention=48),
}


def model_of(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 2.0 * parameter.shape[-1] ** -0.5)
    return model  # type: ignore[no-any-return]


def runner_of(model: PreTrainedModel, dtype: torch.dtype) -> Runner:
    weights, manifest = image_in_memory(state_names(model), dtype)
    shape = kv_shape(model.config, dtype, 8)
    runner = Runner(Skeleton(model.config, manifest, packed=True), shape, prefill_chunk_tokens=GRID)
    runner.pack(weights)
    runner.bind(weights)
    runner.record()
    return runner


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, 250, (n,), generator=generator).tolist() for n in (1, 17, 60)]


def alone(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    config = GenerationConfig(do_sample=False, max_new_tokens=N_OUTPUT, eos_token_id=-1, pad_token_id=0)
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers_in_company(name: str, hostile_scheduler: Any, job: Any) -> None:
    probe(CONFIGS[name]())
    model = model_of(CONFIGS[name](), torch.float32)
    runner = runner_of(model, torch.float32)
    shape = kv_shape(model.config, torch.float32, 8)
    scheduler = hostile_scheduler(runner, shape, torch.float32, grid=GRID, n_blocks=120)
    got = scheduler.serve([job(p, N_OUTPUT) for p in prompts()], preempt=0.1, move=0.1)
    assert got == [alone(model, prompt) for prompt in prompts()]


@pytest.mark.parametrize("name", ["deepseek_v3", "granitemoe", "olmoe", "qwen3_moe", "stablelm"])
def test_equals_itself_alone_in_bfloat16(name: str, hostile_scheduler: Any, job: Any) -> None:
    model = model_of(CONFIGS[name](), torch.bfloat16)
    runner = runner_of(model, torch.bfloat16)
    shape = kv_shape(model.config, torch.bfloat16, 8)

    def serve(which: list[list[int]]) -> list[list[int]]:
        scheduler = hostile_scheduler(runner, shape, torch.bfloat16, grid=GRID, n_blocks=120)
        outputs: list[list[int]] = scheduler.serve([job(p, N_OUTPUT) for p in which], preempt=0.1, move=0.1)
        return outputs

    assert serve(prompts()) == [serve([prompt])[0] for prompt in prompts()]


@pytest.mark.parametrize(
    ("model_type", "numbers"),
    [
        ("glm4_moe", {"n_group": 8, "topk_group": 4, "n_routed_experts": 256, "num_experts_per_tok": 8}),
        (
            "phimoe",
            {
                "hidden_size": 512,
                "intermediate_size": 640,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "num_local_experts": 4,
                "max_position_embeddings": 131072,
                "sliding_window": 131072,
            },
        ),
    ],
)
def test_the_probes_own_numbers_fit_each_other(model_type: str, numbers: dict[str, int]) -> None:
    probe(AutoConfig.for_model(model_type, **numbers))
