"""Sizes that the probe's small model cannot show: a run of the real model for shapes alone does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from tests.models.test_more_architectures import COMMON, CONFIGS, GRID, alone, prompts
from tokenmux.core.errors import UnsupportedModel
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.model_facts import kv_shape, kv_shape_of
from tokenmux.models.catalogue.probe import probe
from tokenmux.models.network.runner import Runner
from tokenmux.models.network.skeleton import empty_model
from tokenmux.models.weights.image import map_image


def changed(config: PreTrainedConfig, **values: object) -> PreTrainedConfig:
    for name, value in values.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lambda: changed(tiny.FAMILIES["mixtral"](), num_experts_per_tok=8), "do not fit each other"),
        (lambda: changed(tiny.FAMILIES["qwen2_moe"](), num_experts_per_tok=5), "do not fit each other"),
        (lambda: changed(CONFIGS["deepseek_v3"](), n_group=3), "do not fit each other"),
        (lambda: changed(CONFIGS["deepseek_v3"](), topk_group=5), "do not fit each other"),
        (lambda: changed(tiny.FAMILIES["mistral"](), sliding_window=-1), "sliding window of -1"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(config: Any, said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        probe(config())


@pytest.mark.parametrize("family", ["gpt2", "opt"])
@pytest.mark.parametrize("unread", [{"head_dim": 16}, {"num_key_value_heads": 2}, {"head_dim": 64}])
def test_keys_that_the_model_does_not_read_change_nothing(
    family: str, unread: dict[str, int], tmp_path: Path, hostile_scheduler: Any, job: Any
) -> None:
    folder = tiny.create(family, tmp_path / "model", dtype=torch.float32)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | unread))
    entry = Catalogue(tmp_path / "root", block_size=8).register_folder("m", folder)
    assert (entry.facts.kv.n_kv_heads, entry.facts.kv.head_dim) == (4, 32)
    runner = Runner(entry.skeleton(), entry.facts.kv, prefill_chunk_tokens=GRID)
    runner.bind(map_image(entry.manifest).clone())
    scheduler = hostile_scheduler(runner, entry.facts.kv, torch.float32, grid=GRID, n_blocks=120)
    got = scheduler.serve([job(prompt, 6) for prompt in prompts()])
    model = type(entry.skeleton().model).from_pretrained(folder).eval()
    assert got == [alone(model, prompt)[:6] for prompt in prompts()]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_heard_is_what_configs_say(name: str) -> None:
    config = CONFIGS[name]()
    model = empty_model(config, torch.bfloat16)
    assert kv_shape_of(model, torch.bfloat16) == kv_shape(config, torch.bfloat16)
    assert all(not buffer.is_meta for buffer in model.buffers()), "the model was to be kept as it is"


def test_a_model_that_reads_values_has_the_shape_of_its_config() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    config = AutoConfig.for_model("llama", **COMMON, rope_parameters=rope)
    probe(config)
    assert kv_shape_of(empty_model(config, torch.float32), torch.float32) == kv_shape(config, torch.float32)


def test_a_layer_that_only_the_real_model_has_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a model whose third layer is of another kind, which the small one of two layers lacks."""
    config = changed(tiny.FAMILIES["llama"](), num_hidden_layers=3)
    module = type(empty_model(config, torch.float32).model.layers[0].self_attn)
    plain = module.forward

    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **named: Any) -> Any:
        if self.layer_idx == 2:
            return hidden_states, None
        return plain(self, hidden_states, *args, **named)

    monkeypatch.setattr(module, "forward", forward)
    with pytest.raises(UnsupportedModel, match=r"layers \[2\] do not call the attention function"):
        probe(config)


def test_an_empty_model_takes_no_memory_however_large_its_layers_are() -> None:
    sizes = {"hidden_size": 1 << 14, "intermediate_size": 1 << 17, "num_local_experts": 256}
    config = AutoConfig.for_model("mixtral", **COMMON | sizes, num_experts_per_tok=2)
    model = empty_model(config, torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1 << 40
    assert kv_shape_of(model, torch.float32) == kv_shape(config, torch.float32)


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_buffers_of_an_empty_model_are_real(family: str) -> None:
    assert all(not buffer.is_meta for buffer in empty_model(tiny.FAMILIES[family](), torch.float32).buffers())
