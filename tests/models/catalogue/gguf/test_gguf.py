"""GGUF files give the model that they were written from, whatever its architecture, rotary scaling, windows
and experts.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFValueType
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tests.models.catalogue.gguf import gguf_files as files
from tokenmux.core.errors import BadCheckpoint, NotFound, UnsupportedModel
from tokenmux.core.pooling import NoPooling, Pooling, PoolingKind
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.gguf.gguf_checkpoint import GgufCheckpoint
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.runner import Runner
from tokenmux.models.weights.image import map_image

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 10 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
    "original_max_position_embeddings": 256,
    "partial_rotary_factor": 1.0,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 96}
GEMMA3 = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
NAMED_INSTEAD = {
    "feed_forward_length": "blk.0.ffn_gate.weight",
    "expert_count": "expert_used_count is missing",
    "attention.key_length": "attention.value_length",
}
"""What else may be named, where two keys or a key and a tensor contradict each other."""
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("llama", {"head_dim": 32}),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 64}),
    "llama3-2": ("llama", {"rope_parameters": LLAMA3 | {"factor": 32.0}, "head_dim": 64}),
    "llama3-short": (
        "llama",
        {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 256}, "head_dim": 64},
    ),
    "llama3-odd": (
        "llama",
        {
            "rope_parameters": LLAMA3 | {"original_max_position_embeddings": 300, "high_freq_factor": 2.5},
            "head_dim": 64,
        },
    ),
    "llama-linear": ("llama", {"rope_parameters": LINEAR}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "mistral-window": ("mistral", {"sliding_window": 24}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral-window": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24}),
    "qwen2": ("qwen2", {}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen2moe": ("qwen2_moe", EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 160}),
    "qwen3moe": ("qwen3_moe", EXPERTS | {"num_experts": 4, "head_dim": 32, "norm_topk_prob": True}),
    "gemma": ("gemma", {"head_dim": 32}),
    "gemma2": ("gemma2", {"head_dim": 32, "sliding_window": 24, "attn_logit_softcapping": 5.0}),
    "gemma2-27b": ("gemma2", {"head_dim": 32, "num_hidden_layers": 46, "query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3_text", {"head_dim": 32, "num_hidden_layers": 7, "sliding_window": 24}),
    "gemma3-scaled": (
        "gemma3_text",
        {"head_dim": 32, "num_hidden_layers": 6, "sliding_window": 24, "rope_parameters": GEMMA3},
    ),
    "phi3": ("phi3", {}),
    "phi3-window": ("phi3", {"sliding_window": 24}),
    "phi3-long": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 256}),
    "phi3-partial": (
        "phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}},
    ),
    "starcoder2": ("starcoder2", {"sliding_window": 24}),
    "gpt2": (
        "gpt2",
        {"num_key_value_heads": None, "intermediate_size": None, "max_position_embeddings": 192},
    ),
    "gpt-oss": (
        "gpt_oss",
        {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24},
    ),
    "olmo2": ("olmo2", {}),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "granite": (
        "granite",
        {
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 4.0,
        },
    ),
    "command-r": ("cohere", {"logit_scale": 0.25}),
    "cohere2": (
        "cohere2",
        {"head_dim": 16, "num_hidden_layers": 5, "sliding_window": 24, "logit_scale": 0.25},
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "glm4": ("glm4", {"head_dim": 16}),
    "seed-oss": ("seed_oss", {"head_dim": 32}),
}


def model_from(checkpoint: GgufCheckpoint) -> PreTrainedModel:
    """transformers' own model of what was read, to compare with the one that was written."""
    model = AutoModelForCausalLM.from_config(
        checkpoint.config, dtype=torch.float32, attn_implementation="eager"
    )
    state = dict(checkpoint.tensors(torch.float32))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


def logits(model: PreTrainedModel, n_tokens: int = 131) -> torch.Tensor:
    prompt = torch.randint(0, 250, (1, n_tokens), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return model(prompt).logits


@pytest.mark.parametrize("name", MODELS)
def test_a_file_gives_the_model_it_was_written_from(name: str, tmp_path: Path) -> None:
    model_type, sizes = MODELS[name]
    model = files.model_of(model_type, **sizes)
    file = files.contents_of(model).write(tmp_path / "model.gguf")
    read = model_from(GgufCheckpoint.open(file))
    expected, found = logits(model), logits(read)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return files.model_of("llama")


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q5_1", "Q8_0", "MXFP4"])
def test_packed_tensors_have_the_values_that_gguf_unpacks(
    kind: str, llama: PreTrainedModel, tmp_path: Path
) -> None:
    contents = files.contents_of(llama)
    packed = GGMLQuantizationType[kind]
    for name, array in contents.tensors.items():
        if array.ndim > 1:
            contents.packed[name] = packed
            if kind != "F16":
                array[:] = gguf.dequantize(gguf.quantize(np.ascontiguousarray(array), packed), packed)
            else:
                array[:] = array.astype(np.float16)
    expected = model_from(GgufCheckpoint.open(contents.write(tmp_path / "packed.gguf")))
    contents.packed.clear()
    plain = model_from(GgufCheckpoint.open(contents.write(tmp_path / "plain.gguf")))
    assert torch.equal(logits(expected), logits(plain))


def test_experts_of_mxfp4_are_read(tmp_path: Path) -> None:
    model = files.model_of(
        "gpt_oss", head_dim=32, num_local_experts=4, num_experts_per_tok=2, sliding_window=24
    )
    contents = files.contents_of(model)
    for name in contents.tensors:
        if name.endswith("_exps.weight"):
            contents.packed[name] = GGMLQuantizationType.MXFP4
    checkpoint = GgufCheckpoint.open(contents.write(tmp_path / "model.gguf"))
    down = dict(checkpoint.tensors(torch.float32))["model.layers.1.mlp.experts.down_proj"]
    stored = np.ascontiguousarray(contents.tensors["blk.1.ffn_down_exps.weight"])
    kind = GGMLQuantizationType.MXFP4
    expected = gguf.dequantize(gguf.quantize(stored, kind), kind)
    assert torch.equal(down, torch.from_numpy(expected).transpose(1, 2))
    model_from(checkpoint)


def test_experts_in_single_tensors_are_read(tmp_path: Path) -> None:
    model = files.model_of("mixtral", num_local_experts=4, num_experts_per_tok=2)
    contents = files.contents_of(model)
    for name in [name for name in contents.tensors if "_exps." in name]:
        stack = contents.tensors.pop(name)
        for number, array in enumerate(stack):
            contents.tensors[name.replace("_exps.weight", f".{number}.weight")] = array
    read = model_from(GgufCheckpoint.open(contents.write(tmp_path / "model.gguf")))
    torch.testing.assert_close(logits(read), logits(model), rtol=1e-4, atol=1e-4)


def test_factors_that_no_llama_3_has_are_used_as_they_are(tmp_path: Path) -> None:
    model = files.model_of("llama")
    contents = files.contents_of(model)
    contents.tensors["rope_freqs.weight"] = np.array([1.0, 3.0, 1.5, 2.0, 7.0, 1.0, 9.0, 4.0], np.float32)
    read = model_from(GgufCheckpoint.open(contents.write(tmp_path / "model.gguf")))
    assert read.config.max_position_embeddings == 512
    plain = model.model.rotary_emb.inv_freq
    factors = torch.from_numpy(contents.tensors["rope_freqs.weight"])
    torch.testing.assert_close(read.model.rotary_emb.inv_freq, plain / factors)
    assert read.model.rotary_emb.attention_scaling == 1.0


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_of_several_files_stands_for_all(given: int, tmp_path: Path) -> None:
    model = files.model_of("qwen2")
    shards = files.contents_of(model).write_split(tmp_path, n_files=3)
    read = model_from(GgufCheckpoint.open(shards[given]))
    torch.testing.assert_close(logits(read), logits(model), rtol=1e-4, atol=1e-4)


def test_files_that_do_not_make_a_whole_are_refused_by_name(llama: PreTrainedModel, tmp_path: Path) -> None:
    contents = files.contents_of(llama)
    first, second, third = contents.write_split(tmp_path, n_files=3)
    renamed = third.rename(tmp_path / "other.gguf")
    with pytest.raises(
        BadCheckpoint, match=r"one of 3 files of a model, and model-00003-of-00003.gguf is missing"
    ):
        GgufCheckpoint.open(first)
    with pytest.raises(BadCheckpoint, match=r"must be named NAME-00001-of-00003.gguf"):
        GgufCheckpoint.open(renamed)
    third.write_bytes(second.read_bytes())
    with pytest.raises(BadCheckpoint, match=r"model-00003-of-00003.gguf: split.no is 1, and its name says 2"):
        GgufCheckpoint.open(second)
    del contents.tensors["output_norm.weight"]
    (other := tmp_path / "other").mkdir()
    third.write_bytes(contents.write_split(other, n_files=3)[2].read_bytes())
    with pytest.raises(BadCheckpoint, match=r"split.tensors.count|is in another file"):
        GgufCheckpoint.open(first)
    with pytest.raises(NotFound, match="no such file"):
        GgufCheckpoint.open(tmp_path / "nonesuch.gguf")


def test_a_count_of_files_that_is_no_whole_number_is_not_passed_over(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    contents = files.contents_of(llama)
    contents.keys["split.count"] = ("2", files.TEXT)
    with pytest.raises(BadCheckpoint, match=r"split.count is '2', not a whole number"):
        GgufCheckpoint.open(contents.write(tmp_path / "model.gguf"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_numbers_that_are_not_finite_are_refused(
    value: float, llama: PreTrainedModel, tmp_path: Path
) -> None:
    contents = files.contents_of(llama)
    contents.tensors["blk.1.ffn_up.weight"] = contents.tensors["blk.1.ffn_up.weight"].astype(np.float32)
    contents.tensors["blk.1.ffn_up.weight"][3, 3] = np.float32(value) if value != 1e39 else np.float32(3e38)
    checkpoint = GgufCheckpoint.open(contents.write(tmp_path / "model.gguf"))
    with pytest.raises(
        BadCheckpoint, match=r"blk.1.ffn_up.weight has numbers that are not finite in float16"
    ):
        dict(checkpoint.tensors(torch.float16))


@pytest.mark.parametrize(
    ("model_type", "key", "value", "kind"),
    [
        ("llama", "attention.clamp_kqv", 8.0, files.F32),
        ("llama", "logit_scale", 0.5, files.F32),
        ("llama", "rope.scaling.type", "dynamic", files.TEXT),
        ("llama", "rope.dimension_count", 8, files.U32),
        ("llama", "attention.value_length", 32, files.U32),
        ("llama", "vocab_size", 321, files.U32),
        ("llama", "expert_count", 4, files.U32),
        ("llama", "attention.causal", False, files.FLAG),
        ("qwen2", "attention.sliding_window", 24, files.U32),
        ("qwen2", "pooling_type", 4, files.U32),
        ("qwen2", "never.heard.of", 1, files.U32),
        ("qwen2", "attention.head_count", 0, files.U32),
        ("qwen2", "attention.head_count", 1 << 30, files.U32),
        ("qwen2", "attention.key_length", 1 << 30, files.U32),
        ("qwen2", "block_count", 1_000_000_000, files.U32),
        ("qwen2", "context_length", (1 << 32) - 1, files.U32),
        ("qwen2", "attention.layer_norm_rms_epsilon", float("nan"), files.F32),
        ("qwen2", "rope.freq_base", -1.0, files.F32),
        ("qwen2", "feed_forward_length", 77, files.U32),
        ("qwen3_moe", "expert_gating_func", 2, files.U32),
        ("qwen3_moe", "expert_weights_scale", 2.5, files.F32),
        ("qwen3_moe", "expert_used_count", 5, files.U32),
    ],
)
def test_a_key_that_would_change_the_result_is_refused_by_name(
    model_type: str, key: str, value: Any, kind: GGUFValueType, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = (
        EXPERTS | {"num_experts": 4, "norm_topk_prob": True} if "moe" in model_type else {}
    )
    contents = files.contents_of(files.model_of(model_type, **sizes))
    contents.keys[f"{contents.architecture}.{key}"] = (value, kind)
    with pytest.raises((BadCheckpoint, UnsupportedModel)) as refused:
        GgufCheckpoint.open(contents.write(tmp_path / "model.gguf"))
    assert key in str(refused.value) or NAMED_INSTEAD[key] in str(refused.value)


@pytest.mark.parametrize("n", [1, 3])
def test_a_list_for_other_layers_than_there_are_is_refused(
    n: int, llama: PreTrainedModel, tmp_path: Path
) -> None:
    contents = files.contents_of(llama)
    contents.keys["llama.attention.head_count_kv"] = ([2] * n, GGUFValueType.ARRAY)
    with pytest.raises(BadCheckpoint, match=f"head_count_kv has {n} elements, and there are 2 layers"):
        GgufCheckpoint.open(contents.write(tmp_path / "model.gguf"))


def test_a_tower_of_layers_is_refused_before_it_is_built(llama: PreTrainedModel, tmp_path: Path) -> None:
    contents = files.contents_of(llama)
    contents.put(block_count=(1500, files.U32))
    for number in range(2, 1500):
        contents.tensors[f"blk.{number}.attn_norm.weight"] = np.ones(1, np.float32)
    with pytest.raises(BadCheckpoint, match="block_count is 1500, and models have at most 1024 layers"):
        GgufCheckpoint.open(contents.write(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    "key", ["author.note", "quantize.imatrix.file", "general.license", "general.sampling.temp"]
)
def test_notes_of_who_made_the_file_are_passed_over(key: str, llama: PreTrainedModel, tmp_path: Path) -> None:
    contents = files.contents_of(llama)
    contents.keys[key] = ("whatever", files.TEXT)
    GgufCheckpoint.open(contents.write(tmp_path / "model.gguf"))


def test_keys_of_the_part_for_images_are_passed_over_and_its_tensors_are_not(tmp_path: Path) -> None:
    contents = files.contents_of(files.model_of("gemma3_text", head_dim=32, sliding_window=24))
    contents.put(mm__tokens_per_image=(256, files.U32), vision__block_count=(27, files.U32))
    GgufCheckpoint.open(contents.write(tmp_path / "text.gguf"))
    contents.tensors["v.blk.0.attn_q.weight"] = np.ones((4, 4), np.float32)
    with pytest.raises(UnsupportedModel, match=r"such as v.blk.0.attn_q.weight"):
        GgufCheckpoint.open(contents.write(tmp_path / "both.gguf"))


def test_tensors_are_used_once_each_or_named(llama: PreTrainedModel, tmp_path: Path) -> None:
    contents = files.contents_of(llama)
    contents.tensors["blk.0.attn_q.extra"] = np.ones(4, np.float32)
    with pytest.raises(UnsupportedModel, match=r"1 tensor is without a use .* such as blk.0.attn_q.extra"):
        GgufCheckpoint.open(contents.write(tmp_path / "extra.gguf"))
    del contents.tensors["blk.0.attn_q.extra"], contents.tensors["blk.1.attn_norm.weight"]
    with pytest.raises(BadCheckpoint, match=r"1 tensor is missing, such as blk.1.attn_norm.weight"):
        GgufCheckpoint.open(contents.write(tmp_path / "missing.gguf"))


@pytest.mark.parametrize("architecture", ["clip", "mamba"])
def test_other_architectures_are_refused_by_name(
    architecture: str, llama: PreTrainedModel, tmp_path: Path
) -> None:
    contents = files.contents_of(llama)
    contents.architecture = architecture
    with pytest.raises(
        UnsupportedModel, match=f"general.architecture is '{architecture}'; supported are cohere2,"
    ):
        GgufCheckpoint.open(contents.write(tmp_path / "model.gguf"))


def test_an_adapter_is_no_model(llama: PreTrainedModel, tmp_path: Path) -> None:
    contents = files.contents_of(llama)
    contents.keys["general.type"] = ("adapter", files.TEXT)
    with pytest.raises(UnsupportedModel, match=r"general.type is 'adapter'"):
        GgufCheckpoint.open(contents.write(tmp_path / "lora.gguf"))


@pytest.mark.parametrize(("said", "kind"), [(1, "mean"), (2, "first"), (3, "last"), (0, None), (None, None)])
def test_a_file_that_says_its_pooling_makes_embeddings(
    said: int | None, kind: PoolingKind | None, llama: PreTrainedModel, tmp_path: Path
) -> None:
    contents = files.contents_of(llama)
    if said is not None:
        contents.put(pooling_type=(said, files.U32))
    entry = Catalogue(tmp_path).register_gguf("m", contents.write(tmp_path / "model.gguf"))
    if kind is None:
        assert isinstance(entry.embedding, NoPooling)
    else:
        assert entry.embedding == Pooling(kind, True, llama.config.hidden_size)


def test_a_registered_file_is_served_with_the_tokens_of_its_model(tmp_path: Path) -> None:
    """The whole way: rotary scaling of Llama 3, two files, end tokens, the catalogue, our own steps."""
    model = files.model_of("llama", rope_parameters=LLAMA3, head_dim=64)
    contents = files.contents_of(model)
    contents.keys["tokenizer.ggml.eot_token_id"] = (259, files.U32)
    _, second = contents.write_split(tmp_path)
    entry = Catalogue(tmp_path, block_size=16).register_gguf("m", second, dtype="float32")
    assert entry.tokenizer().stop_token_ids == {257, 259}
    prompt = torch.randint(0, 250, (100,), generator=torch.Generator().manual_seed(7)).tolist()
    shape = entry.facts.kv
    runner = Runner(entry.skeleton(), shape, prefill_chunk_tokens=512)
    runner.bind(map_image(entry.manifest).clone())
    kv = torch.zeros(8, shape.n_layers, 2, shape.n_kv_heads, 16, shape.head_dim)
    tokens, start = list(prompt), 0
    for _ in range(12):
        segment = Segment(tokens[start:], start, len(prompt), list(range(8)))
        tokens.append(runner.step(runner.prepare([segment], kv))[0])
        start = len(tokens) - 1
    ids = torch.tensor([prompt])
    settings = GenerationConfig(do_sample=False, max_new_tokens=12, pad_token_id=0)
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    assert tokens == expected[0].tolist()
