"""The models of a plan, as operators name them."""

import json
from pathlib import Path

import pytest

from tokenmux.core.errors import ConfigError, NotFound
from tokenmux.core.facts import ModelId
from tokenmux.simulator.planner.named_models import parse_models

CONFIG = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "my-model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(CONFIG))
    return made


def names(*entries: str) -> list[str]:
    return list(parse_models(entries).market.facts)


def test_architectures_by_name_and_by_number() -> None:
    assert names("qwen2.5-7b", "bank=llama2-13b", "2*yi-1.5-9b") == [
        "qwen2.5-7b",
        "bank",
        "yi-1.5-9b-0",
        "yi-1.5-9b-1",
    ]
    asked = parse_models(["bank=llama2-13b@0.25", "2*yi-1.5-9b@3", "qwen2.5-7b"])
    assert asked.rates == {"bank": 0.25, "yi-1.5-9b-0": 3.0, "yi-1.5-9b-1": 3.0}
    assert asked.market.architectures[ModelId("bank")] == "llama2-13b"


def test_a_config_gives_sizes(folder: Path) -> None:
    market = parse_models([str(folder), f"bank={folder / 'config.json'}@2", f"2*{folder}"]).market
    assert list(market.facts) == ["my-model", "bank", "my-model-0", "my-model-1"]
    first, *others = market.facts.values()
    n_parameters = 1000 * 512 + 4 * (512 * (512 + 2 * 128 + 512) + 3 * 512 * 1024 + 2 * 512) + 512
    assert first.n_bytes == 2 * n_parameters
    assert (first.max_context, first.kv.n_kv_heads, first.kv.head_dim) == (2048, 2, 64)
    assert {other.n_bytes for other in others} == {first.n_bytes}
    assert len({image.id for facts in market.facts.values() for image in facts.images}) == 4, (
        "no weights shared"
    )
    assert set(market.architectures.values()) == {""}, "step times are derived"


def test_a_config_of_the_folder_where_one_stands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert names("./config.json") == ["my-model"]
    assert names(".") == ["my-model"]


def test_what_a_server_knows_gives_way_to_what_is_said() -> None:
    known = parse_models(["a=yi-1.5-9b", "b=yi-1.5-9b"]).market.facts
    market = parse_models(["a=llama2-13b"], known).market
    assert market.facts[ModelId("a")].n_bytes > market.facts[ModelId("b")].n_bytes
    assert market.architectures == {"a": "llama2-13b", "b": ""}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("./none", "config.json of a model, or a folder that has one"),
        ("none.json", "none.json: cannot be read: No such file"),
        ("0*qwen2.5-7b", "the number of models must be at least 1"),
        ("999999999*qwen2.5-7b", "at least 1 and at most 100000"),
        ("9" * 5000 + "*qwen2.5-7b", "at least 1 and at most 100000"),
        ("qwen2.5-7b@-0.5", "the rate after @ must be"),
        ("qwen2.5-7b@nan", "the rate after @ must be"),
        ("qwen2.5-7b@1e400", "the rate after @ must be"),
    ],
)
def test_what_is_not_understood_is_told_with_the_remedy(entry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_models([entry])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not the config of a model, but list"),
        ('{"model_type": "bert"}', "config.json: model_type 'bert'"),
        ('{"model_type": "llama"}', "config.json: hidden_size is missing"),
    ],
)
def test_a_bad_config_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse_models([str(folder)])


def test_an_unknown_architecture_names_those_that_there_are() -> None:
    with pytest.raises(NotFound, match=r"there are .*qwen2\.5-7b.* or give its config.json"):
        parse_models(["qwen99"])
