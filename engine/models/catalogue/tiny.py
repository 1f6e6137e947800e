"""Small models with random weights, one per family: for demonstrations and tests on a machine without
downloads.

Their output makes no sense, but they are real checkpoints (config.json, model.safetensors, a byte-level
tokenizer), written as transformers writes them, and each shows what is special about its family: grouped
heads, sliding windows, soft-capped scores, learned positions, attention sinks, experts. All row sizes are
multiples of 64, as in real models: torch computes the last odd elements of an array one by one, and for some
functions (silu in float32) with other rounding, so an odd size would make a row's bits depend on its place in
the batch.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from tokenmux.models.transformers_log import quiet_transformers

VOCAB_SIZE = 320
_SPECIAL = ("<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
_CHAT_TEMPLATE = (
    "{{ '<|begin|>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _config(model_type: str, **sizes: Any) -> Callable[[], PreTrainedConfig]:
    common = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 257,
    }
    chosen = {name: value for name, value in (common | sizes).items() if value is not None}
    return lambda: AutoConfig.for_model(model_type, **chosen)


FAMILIES: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "llama": _config("llama", tie_word_embeddings=True),
    "qwen2": _config("qwen2"),
    "qwen3": _config("qwen3", head_dim=64),
    "mistral": _config("mistral", sliding_window=24),
    "gemma2": _config("gemma2", sliding_window=24, query_pre_attn_scalar=32, attn_logit_softcapping=5.0),
    "gemma3": _config(
        "gemma3_text",
        num_hidden_layers=3,
        sliding_window=24,
        query_pre_attn_scalar=32,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt2": _config("gpt2", num_key_value_heads=None, head_dim=None),
    "opt": _config("opt", num_key_value_heads=None, head_dim=None, ffn_dim=256, word_embed_proj_dim=128),
    "phi3": _config("phi3"),
    "qwen2_moe": _config(
        "qwen2_moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=128,
    ),
    "mixtral": _config("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "gpt_oss": _config("gpt_oss", num_local_experts=4, num_experts_per_tok=2, sliding_window=24),
}
"""Makers of the families' configs, by name. Windows are shorter than any useful context, so that tests exceed
them."""


def create(family: str, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a checkpoint of `family` with random weights and a byte-level tokenizer into `folder`. Returns
    `folder`.

    The same seed gives the same bytes. Raises KeyError for a family that is not in `FAMILIES`.
    """
    config = FAMILIES[family]()
    with quiet_transformers(), torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            # At the usual scale of fresh weights, or if tied embeddings outweigh the layers between them, a
            # model repeats one token for ever.
            embedding = model.get_input_embeddings().weight
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    scale = 0.3 if parameter is embedding else 2.0
                    parameter.normal_(0.0, scale * parameter.shape[-1] ** -0.5)
        model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_pooling(folder: Path, mode: str, *, normalised: bool = True, matryoshka: bool = False) -> None:
    """Add to the checkpoint in `folder` the files that make it a model for embeddings, as
    sentence-transformers writes them. `mode` is its name of a pooling mode, such as `lasttoken`."""
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, "is_matryoshka": matryoshka}))
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalised else [])]
    modules = [
        {
            "idx": idx,
            "name": str(idx),
            "path": f"{idx}_{kind}" if idx else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for idx, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    modes = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    flags = {
        f"pooling_mode_{one}": one.removesuffix("_token").removesuffix("_tokens") == mode for one in modes
    }
    pooling = {"word_embedding_dimension": config["hidden_size"], **flags, "include_prompt": True}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each byte, a few special ones, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        bos_token=_SPECIAL[0],
        eos_token=_SPECIAL[1],
        pad_token=_SPECIAL[1],
        additional_special_tokens=list(_SPECIAL[2:]),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer
