"""Tokenizers and end tokens of GGUF files: splits by name, spaces, added tokens, ends by key and by text."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.models.catalogue.gguf import gguf_files as files
from tokenmux.core.errors import BadCheckpoint, UnsupportedModel
from tokenmux.models.catalogue.gguf import splits
from tokenmux.models.catalogue.gguf.gguf_tokenizer import GgufTokenizer, read_tokenizer


def byte_level(**changed: Any) -> dict[str, Any]:
    """Metadata of a small byte-level vocabulary; `None` takes a key away."""
    contents = files.Contents("llama")
    files.put_tokenizer(contents)
    metadata = {key: value for key, (value, _) in contents.keys.items()}
    metadata |= {f"tokenizer.ggml.{name}": value for name, value in changed.items()}
    return {key: value for key, value in metadata.items() if value is not None}


def sentencepiece(**changed: Any) -> dict[str, Any]:
    pieces = ["▁", "h", "i", "▁h", "▁hi", "t", "e", "r", "hi", "▁t"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, "<turn>"]
    types = [2, 3, 3, *[6] * 256, *[1] * len(pieces), 4]
    metadata: dict[str, Any] = {
        "model": "llama",
        "tokens": tokens,
        "token_type": types,
        "scores": [-float(number) for number in range(len(tokens))],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in (metadata | changed).items() if v is not None}


def read(metadata: dict[str, Any], architecture: str = "llama") -> GgufTokenizer:
    return read_tokenizer(Path("model.gguf"), metadata, architecture, 320)


def pieces(
    metadata: dict[str, Any], text: str, architecture: str = "llama", *, special: bool = False
) -> list[str]:
    backend = read(metadata, architecture).backend
    return backend.convert_ids_to_tokens(backend.encode(text, add_special_tokens=special))


def test_the_name_of_the_split_decides() -> None:
    assert pieces(byte_level(pre="llama-bpe"), "12") == ["12"]
    for name in ("qwen2", "deepseek-coder", "smollm", "tekken"):
        assert pieces(byte_level(pre=name), "12") == ["1", "2"], name


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("gpt-2", "I'm 123 a  b", ["I", "'m", "Ġ123", "Ġa", "Ġ", "Ġb"]),
        ("llama-bpe", "I'M 1234", ["I", "'M", "Ġ", "123", "4"]),
        ("qwen2", "x\n\n y!?\n", ["x", "ĊĊ", "Ġy", "!?Ċ"]),
        ("smollm", "a 12", ["a", "Ġ", "1", "2"]),
        ("tekken", "helloWorld", ["hello", "World"]),
        ("gpt-4o", "you'reOK", ["you're", "OK"]),
        ("deepseek-coder", "a b.c", ["a", "Ġb", ".", "c"]),
        ("deepseek-v3", "12345 .x", ["123", "45", "Ġ.", "x"]),
        ("seed-coder", "a!\n", ["a", "!", "Ċ"]),
    ],
)
def test_text_is_split_as_the_models_own_tokenizers_split_it(name: str, text: str, parts: list[str]) -> None:
    splitter = splits.split(name)
    assert splitter is not None
    assert [part for part, _ in splitter.pre_tokenize_str(text)] == parts


@pytest.mark.parametrize("name", splits.known())
def test_every_split_keeps_the_text(name: str) -> None:
    text = " I'll pay 12,345.67€\n\n\t für  漢字かな-한글 (it's)… 😀\r\n"
    backend = read(byte_level(pre=name, merges=[], tokens=None) | plain_bytes()).backend
    assert backend.decode(backend.encode(text)) == text


def plain_bytes() -> dict[str, Any]:
    tokens = byte_level()["tokenizer.ggml.tokens"]
    return {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.add_bos_token": False}


@pytest.mark.parametrize("name", ["nonesuch", "deepseek-llm", "default", ""])
def test_an_unknown_split_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"tokenizer.ggml.pre is '{name}'; .*llama-bpe"):
        read(byte_level(pre=name))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pre": None}, "ggml.pre is missing"),
        ({"merges": None}, "ggml.merges is missing"),
        ({"merges": ["h e", "nonsense"]}, "ggml.merges has 'nonsense'"),
        ({"merges": ["h zz"]}, "ggml.merges does not fit"),
        ({"tokens": ["a", "b", "a"]}, "ggml.tokens has 'a' twice"),
        ({"tokens": ["a", "b" * 2000]}, "ggml.tokens has a token of 2000 characters"),
        ({"token_type": [1, 1]}, "ggml.token_type has 2 elements"),
        ({"token_type": [7] * 320}, "ggml.token_type has 7; types are 1 to 6"),
        ({"token_type": [1] * 319 + [-1]}, "ggml.token_type has -1"),
        ({"eos_token_id": 99999}, "ggml.eos_token_id is 99999"),
        ({"eos_token_id": [257, 257]}, "ggml.eos_token_id is [257, 257]"),
        ({"eot_token_id": 320}, "ggml.eot_token_id is 320"),
        ({"eos_token_id": "257"}, "ggml.eos_token_id is '257'"),
        ({"bos_token_id": True}, "ggml.bos_token_id is True"),
        ({"bos_token_id": None, "add_bos_token": True}, "ggml.bos_token_id is missing"),
        ({"model": "t5"}, "ggml.model is 't5'"),
        ({"model": "llama"}, "ggml.scores is missing"),
        ({"suppress_tokens": [3]}, "ggml.suppress_tokens is not known"),
        ({"remove_extra_whitespaces": True}, "ggml.remove_extra_whitespaces is True"),
        ({"add_space_prefix": True}, "ggml.add_space_prefix is True"),
    ],
)
def test_what_cannot_be_right_is_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises((BadCheckpoint, UnsupportedModel)) as refused:
        read(byte_level(**changed))
    assert said in str(refused.value)


def test_scores_that_are_not_numbers_are_named() -> None:
    with pytest.raises(BadCheckpoint, match=r"ggml\.scores has values that are not numbers"):
        read(sentencepiece(scores=[float("nan")] * 270))


@pytest.mark.parametrize("key", ["padding_token_id", "unknown_token_id", "bos_token_id"])
def test_an_ordinary_token_under_a_key_stays_text(key: str) -> None:
    """Padding is often just 0: as a special token it would vanish from outputs, and prompts with it be cut
    there."""
    plain = byte_level()
    backend = read(plain).backend
    changed = read(plain | {f"tokenizer.ggml.{key}": 300}).backend
    for text in ("hello", "<|user|>he"):
        ids = backend.encode(text)
        assert changed.encode(text) == ids
        assert changed.decode(ids, skip_special_tokens=True) == backend.decode(ids, skip_special_tokens=True)
    pieces = sentencepiece()
    assert read(pieces | {f"tokenizer.ggml.{key}": 260}).backend.encode(" hi", add_special_tokens=False) == (
        read(pieces).backend.encode(" hi", add_special_tokens=False)
    )


def test_an_ordinary_token_may_begin_texts() -> None:
    assert pieces(byte_level(bos_token_id=300, add_bos_token=True), "a", special=True) == ["he", "a"]


def test_a_token_of_the_unknown_type_is_special_without_a_key_too() -> None:
    backend = read(sentencepiece(unknown_token_id=None)).backend
    assert backend.encode("<unk>", add_special_tokens=False) == [0]
    assert backend.decode([0, 267], skip_special_tokens=True) == "hi"


def test_without_types_the_first_token_is_special() -> None:
    backend = read(sentencepiece(token_type=None)).backend
    assert backend.decode(backend.encode("hi"), skip_special_tokens=True) == "hi"


@pytest.mark.parametrize(
    ("pre", "told", "begins"), [("llama-bpe", None, True), ("qwen2", None, False), ("qwen2", True, True)]
)
def test_texts_begin_as_the_file_says(pre: str, told: bool | None, begins: bool) -> None:
    found = pieces(byte_level(pre=pre, add_bos_token=told), "a", special=True)
    assert found == (["<|begin|>", "a"] if begins else ["a"])


def test_texts_end_as_the_file_says() -> None:
    assert pieces(byte_level(add_eos_token=True), "a", special=True) == ["a", "<|end|>"]


def test_tokens_that_users_defined_and_spelled_in_other_letters_stay_whole() -> None:
    tokens, types = byte_level()["tokenizer.ggml.tokens"], byte_level()["tokenizer.ggml.token_type"]
    tokens[310], types[310] = "<\uff5cUser\uff5c>", 3
    tokens[311], types[311] = "<think>", 4
    backend = read(byte_level(tokens=tokens, token_type=types)).backend
    assert backend.encode("<\uff5cUser\uff5c>a<think>") == [310, backend.convert_tokens_to_ids("a"), 311]
    assert backend.decode([310, 311], skip_special_tokens=True) == "<think>"


def test_the_prefix_of_a_space_is_the_files() -> None:
    assert pieces(sentencepiece(), "hi") == ["▁hi"]
    assert pieces(sentencepiece(add_space_prefix=True), "hi") == ["▁hi"]
    assert pieces(sentencepiece(add_space_prefix=False), "hi") == ["hi"]
    assert pieces(sentencepiece(), "hi", "gemma") == ["hi"]
    backend = read(sentencepiece(add_space_prefix=False)).backend
    assert backend.decode(backend.encode(" hi", add_special_tokens=False)) == " hi"
    assert pieces(sentencepiece(), "é<turn>", special=True) == ["<s>", "▁", "<0xC3>", "<0xA9>", "<turn>"]


@pytest.mark.parametrize(
    ("changed", "ends"),
    [
        ({}, {257}),
        ({"eot_token_id": 259}, {257, 259}),
        ({"eot_token_id": 259, "eom_token_id": 260}, {257, 259, 260}),
        ({"eos_token_id": 256}, {256, 257}),
    ],
)
def test_ends_by_key(changed: dict[str, Any], ends: set[int]) -> None:
    assert set(read(byte_level(**changed)).end_ids) == ends


def test_ends_by_text() -> None:
    tokens, types = byte_level()["tokenizer.ggml.tokens"], byte_level()["tokenizer.ggml.token_type"]
    tokens[310], tokens[311], tokens[312], tokens[313] = "<end_of_turn>", "</s>", "<eos>", "<|im_end|>"
    types[310:314] = [1, 1, 3, 3]
    assert set(read(byte_level(tokens=tokens, token_type=types)).end_ids) == {257, 310, 312, 313}
    tokens[310], tokens[313] = "<|return|>", "<|call|>"
    assert set(read(byte_level(tokens=tokens, token_type=types, eos_token_id=310)).end_ids) == {310, 312, 313}
    assert 257 not in read(byte_level(tokens=tokens, token_type=types, eos_token_id=310)).end_ids


@pytest.mark.parametrize(
    "metadata", [byte_level(pre="deepseek-coder"), sentencepiece(add_space_prefix=False)]
)
def test_a_saved_tokenizer_is_the_same(metadata: dict[str, Any], tmp_path: Path) -> None:
    backend = read(metadata).backend
    backend.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("12 hi", " the hither é\n", "<|user|>x"):
        assert loaded.encode(text) == backend.encode(text)
        assert loaded.decode(loaded.encode(text)) == backend.decode(backend.encode(text))


def test_the_template_for_tools_is_kept() -> None:
    plain = read(byte_level()).backend
    metadata = byte_level() | {"tokenizer.chat_template.tool_use": "{{ tools | length }}"}
    backend = read(metadata).backend
    messages = [{"role": "user", "content": "x"}]
    assert backend.apply_chat_template(messages, tools=[{}, {}], tokenize=False) == "2"
    assert backend.apply_chat_template(messages, tokenize=False) == (
        plain.apply_chat_template(messages, tokenize=False)
    )
