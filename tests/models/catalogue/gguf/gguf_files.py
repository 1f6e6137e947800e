"""Writes tiny GGUF files from transformers' models, by the rules of llama.cpp's converters: an oracle that
shares no code with the reader.

`write(model, file)` gives a file whose tokens must be those of `model`. `Contents` can be changed before it
is written, to see what a reader makes of it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tokenmux.models.catalogue import tiny

U32, F32, TEXT, FLAG = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING, GGUFValueType.BOOL

_COMMON = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_AFTER = {"post_attention_layernorm": "post_attention_norm"}
_GEMMA = _AFTER | {"pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}
_GPT2 = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
}
_OTHER_NAMES = {
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "olmo2": _GEMMA,
    "gpt_oss": _AFTER,
    "seed_oss": _AFTER,
    "gpt2": _GPT2,
    "glm4": {"post_self_attn_layernorm": "post_attention_norm", "post_mlp_layernorm": "post_ffw_norm"},
}
ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
    "cohere": "command-r",
    "gpt_oss": "gpt-oss",
}
_PAIRED = ("llama", "mistral", "mixtral", "granite", "smollm3")
_RAISED = ("gemma", "gemma2", "gemma3_text")


@dataclass
class Contents:
    """What a file will hold: keys with their types, and tensors, in the order of writing."""

    architecture: str
    keys: dict[str, tuple[Any, GGUFValueType]] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    packed: dict[str, GGMLQuantizationType] = field(default_factory=dict)
    """Types of the tensors that are not stored in float32."""

    def put(self, **named: tuple[Any, GGUFValueType]) -> None:
        """Add keys of the architecture; `__` stands for a dot."""
        for name, value in named.items():
            self.keys[f"{self.architecture}.{name.replace('__', '.')}"] = value

    def write(self, file: Path) -> Path:
        """Write one file."""
        writer = gguf.GGUFWriter(file, self.architecture)
        self._put_keys(writer)
        self._put_tensors(writer, list(self.tensors))
        return file

    def write_split(self, folder: Path, name: str = "model", n_files: int = 2) -> list[Path]:
        """Write several files as llama.cpp splits them: metadata in the first, tensors dealt out in order."""
        names = list(self.tensors)
        files = []
        for number in range(n_files):
            file = folder / f"{name}-{number + 1:05}-of-{n_files:05}.gguf"
            writer = gguf.GGUFWriter(file, self.architecture)
            if number == 0:
                self._put_keys(writer)
            writer.add_key_value("split.no", number, GGUFValueType.UINT16)
            writer.add_key_value("split.count", n_files, GGUFValueType.UINT16)
            writer.add_key_value("split.tensors.count", len(names), GGUFValueType.INT32)
            share = -(-len(names) // n_files)
            self._put_tensors(writer, names[number * share : (number + 1) * share])
            files.append(file)
        return files

    def _put_keys(self, writer: gguf.GGUFWriter) -> None:
        for key, (value, kind) in self.keys.items():
            if isinstance(value, list):
                writer.add_array(key, value)
            else:
                writer.add_key_value(key, value, kind)

    def _put_tensors(self, writer: gguf.GGUFWriter, names: list[str]) -> None:
        for name in names:
            array = np.ascontiguousarray(self.tensors[name], np.float32)
            if kind := self.packed.get(name):
                writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def model_of(model_type: str, seed: int = 0, **sizes: Any) -> PreTrainedModel:
    """A tiny float32 model with random weights, norms and biases too, so that each of them shows."""
    common: dict[str, Any] = {
        "vocab_size": tiny.VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": None,
    }
    config: PreTrainedConfig = AutoConfig.for_model(
        model_type,
        **{
            name: value
            for name, value in (common | sizes).items()
            if value is not None or name == "pad_token_id"
        },
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def contents_of(model: PreTrainedModel) -> Contents:
    """What a file of this model holds."""
    config = model.config
    made = Contents(ARCHITECTURES.get(config.model_type, config.model_type.replace("_text", "")))
    _put_sizes(made, config)
    _put_rope(made, config)
    _put_particulars(made, config)
    put_tokenizer(made)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for name, array in state.items():
        _put_tensor(made, config, name, array)
    return made


def _put_sizes(made: Contents, config: PreTrainedConfig) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    made.put(
        context_length=(config.max_position_embeddings, U32),
        embedding_length=(config.hidden_size, U32),
        block_count=(config.num_hidden_layers, U32),
        feed_forward_length=(getattr(config, "intermediate_size", 4 * config.hidden_size), U32),
        attention__head_count=(config.num_attention_heads, U32),
        attention__head_count_kv=(getattr(config, "num_key_value_heads", config.num_attention_heads), U32),
    )
    if config.model_type != "gpt2":
        made.put(
            attention__key_length=(head_dim, U32),
            attention__value_length=(head_dim, U32),
            vocab_size=(config.vocab_size, U32),
        )
    for ours, theirs in (
        ("rms_norm_eps", "layer_norm_rms_epsilon"),
        ("layer_norm_eps", "layer_norm_epsilon"),
        ("layer_norm_epsilon", "layer_norm_epsilon"),
        ("norm_epsilon", "layer_norm_epsilon"),
    ):
        if hasattr(config, ours):
            made.put(**{f"attention__{theirs}": (getattr(config, ours), F32)})


def _put_rope(made: Contents, config: PreTrainedConfig) -> None:
    if config.model_type == "gpt2":
        return
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    made.put(rope__freq_base=(rope["rope_theta"], F32), rope__dimension_count=(rotated, U32))
    match rope["rope_type"]:
        case "linear":
            made.put(rope__scaling__type=("linear", TEXT), rope__scaling__factor=(rope["factor"], F32))
        case "yarn":
            made.put(
                rope__scaling__type=("yarn", TEXT),
                rope__scaling__factor=(rope["factor"], F32),
                rope__scaling__original_context_length=(rope["original_max_position_embeddings"], U32),
            )
        case "longrope":
            made.put(rope__scaling__original_context_length=(rope["original_max_position_embeddings"], U32))
            made.tensors["rope_factors_long.weight"] = np.array(rope["long_factor"], np.float32)
            made.tensors["rope_factors_short.weight"] = np.array(rope["short_factor"], np.float32)
        case "llama3":
            made.tensors["rope_freqs.weight"] = llama3_factors(rope, head_dim)


def llama3_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """The factors that llama.cpp's converter stores for Llama 3's rotary scaling."""
    factors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (index / head_dim)
        context, low, high = (
            rope["original_max_position_embeddings"],
            rope["low_freq_factor"],
            rope["high_freq_factor"],
        )
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(rope["factor"])
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def _put_particulars(made: Contents, config: PreTrainedConfig) -> None:
    kind = config.model_type
    windowed = kind in (
        "mistral",
        "mixtral",
        "gemma2",
        "gemma3_text",
        "phi3",
        "gpt_oss",
        "cohere2",
        "starcoder2",
    )
    if windowed and config.sliding_window is not None:
        made.put(attention__sliding_window=(config.sliding_window, U32))
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    if experts:
        made.put(expert_count=(experts, U32), expert_used_count=(config.num_experts_per_tok, U32))
    if kind in ("qwen2_moe", "qwen3_moe"):
        made.put(expert_feed_forward_length=(config.moe_intermediate_size, U32))
    if kind == "qwen2_moe":
        made.put(expert_shared_feed_forward_length=(config.shared_expert_intermediate_size, U32))
    if kind == "gpt_oss":
        made.put(expert_feed_forward_length=(config.intermediate_size, U32))
    if kind == "gemma2":
        made.put(
            attn_logit_softcapping=(config.attn_logit_softcapping, F32),
            final_logit_softcapping=(config.final_logit_softcapping, F32),
        )
    if kind == "granite":
        made.put(
            attention__scale=(config.attention_multiplier, F32),
            embedding_scale=(config.embedding_multiplier, F32),
            residual_scale=(config.residual_multiplier, F32),
            logit_scale=(config.logits_scaling, F32),
        )
    if kind in ("cohere", "cohere2"):
        made.put(logit_scale=(config.logit_scale, F32), rope__scaling__type=("none", TEXT))


def put_tokenizer(made: Contents) -> None:
    """Add the keys of a byte-level vocabulary with three merges."""
    vocabulary = tiny.byte_tokenizer().get_vocab()
    texts = {number: text for text, number in vocabulary.items()}
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(tiny.VOCAB_SIZE)]
    types = [1 if n < 256 else 3 if n in texts else 5 for n in range(tiny.VOCAB_SIZE)]
    made.keys |= {
        "tokenizer.ggml.model": ("gpt2", TEXT),
        "tokenizer.ggml.pre": ("qwen2", TEXT),
        "tokenizer.ggml.tokens": (tokens, GGUFValueType.ARRAY),
        "tokenizer.ggml.token_type": (types, GGUFValueType.ARRAY),
        "tokenizer.ggml.merges": (["h e", "1 2", "l l"], GGUFValueType.ARRAY),
        "tokenizer.ggml.bos_token_id": (256, U32),
        "tokenizer.ggml.eos_token_id": (257, U32),
        "tokenizer.ggml.add_bos_token": (False, FLAG),
        "tokenizer.chat_template": (tiny.byte_tokenizer().chat_template, TEXT),
    }
    # What the merges make must be tokens.
    for place, text in ((300, "he"), (301, "12"), (302, "ll")):
        tokens[place], types[place] = text, 1


def _put_tensor(made: Contents, config: PreTrainedConfig, name: str, array: np.ndarray) -> None:
    kind = config.model_type
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        stem, suffix = name, "weight"
    layer, inner = "", stem
    for start in ("model.layers.", "transformer.h."):
        if stem.startswith(start):
            number, _, inner = stem.removeprefix(start).partition(".")
            layer = f"blk.{number}."
    if inner.startswith("mlp.experts."):
        _put_experts(made, layer, inner.removeprefix("mlp.experts."), array, by_turns=kind == "gpt_oss")
        return
    if inner == "self_attn.sinks":
        made.tensors[f"{layer}attn_sinks.weight"] = array
        return
    stored = (_COMMON | _OTHER_NAMES.get(kind, {}))[inner]
    if kind in _PAIRED and stored in ("attn_q", "attn_k"):
        heads = config.num_attention_heads if stored == "attn_q" else config.num_key_value_heads
        array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    if kind in _RAISED and stored.endswith("norm"):
        array = array + 1
    if kind == "gpt2" and array.ndim == 2 and stored not in ("token_embd", "position_embd"):
        array = array.T
    if stored == "ffn_gate_inp_shexp":
        array = array.reshape(-1)
    made.tensors[f"{layer}{stored}.{suffix}"] = array


def _put_experts(made: Contents, layer: str, name: str, array: np.ndarray, *, by_turns: bool) -> None:
    suffix = "bias" if name.endswith("_bias") else "weight"
    if by_turns and suffix == "weight":
        array = array.swapaxes(1, 2)
    if name.startswith("down"):
        made.tensors[f"{layer}ffn_down_exps.{suffix}"] = array
        return
    half = array.shape[1] // 2
    gate, up = (array[:, ::2], array[:, 1::2]) if by_turns else (array[:, :half], array[:, half:])
    made.tensors[f"{layer}ffn_gate_exps.{suffix}"] = gate
    made.tensors[f"{layer}ffn_up_exps.{suffix}"] = up
