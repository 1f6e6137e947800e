"""Embeddings against transformers' hidden states in float32, in hostile company; and what checkpoints say of
them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from tests.models.test_families import GRID, PROMPT_LENGTHS, Served, load, prompts
from tokenmux.core.pooling import Embedding, NoPooling, Pooling, PoolingKind
from tokenmux.core.sampling import Sampling
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.pooling_config import (
    embedding_document,
    embedding_in,
    embedding_of_document,
)
from tokenmux.server.front.pooled_prompt import PooledPrompt

KINDS: tuple[PoolingKind, ...] = ("last", "mean", "first")
EVERY_DAY = ("qwen3", "gemma3", "gpt2")


def families() -> list[Any]:
    return [
        name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.nightly)
        for name in sorted(tiny.FAMILIES)
    ]


def checkpoint(family: str, folder: Path, mode: str | None = None, **options: Any) -> Path:
    tiny.create(family, folder, dtype=torch.float32)
    if mode is not None:
        tiny.write_pooling(folder, mode, **options)
    return folder


def vector_of(one: Any) -> tuple[float, ...]:
    pooled = PooledPrompt(one.pooling, len(one.prompt))
    for rows in one.pooled:
        pooled.add(rows)
    return pooled.vector()


def expected(folder: Path, prompt: list[int], kind: PoolingKind) -> list[float]:
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        hidden = model(torch.tensor([prompt])).last_hidden_state[0].double()
    rows = {"last": hidden[-1], "mean": hidden.mean(0), "first": hidden[0]}
    values: list[float] = rows[kind].tolist()
    return values


@pytest.mark.parametrize("family", families())
def test_they_equal_transformers_among_others(
    family: str, tmp_path: Path, hostile_scheduler: Any, job: Any
) -> None:
    """Prompts of several chunks, between requests that generate, dropped and moved in their middle."""
    folder = checkpoint(family, tmp_path)
    served = load(folder, torch.float32)
    scheduler = hostile_scheduler(served.runner, served.shape, served.dtype, grid=GRID, n_blocks=400)
    mine = [job(p, 0, pooling=kind) for p in prompts() for kind in KINDS]
    others = [job(p, 6, Sampling(1.0, seed=3), n_prompt_likeliest=1) for p in prompts()]
    scheduler.serve([*mine, *others], preempt=0.2, move=0.1)
    for one in mine:
        assert not one.output
        assert vector_of(one) == pytest.approx(expected(folder, one.prompt, one.pooling), rel=1e-5, abs=1e-5)


def test_company_changes_no_bit_of_them(tmp_path: Path, hostile_scheduler: Any, job: Any) -> None:
    served: Served = load(checkpoint("llama", tmp_path), torch.bfloat16)

    def sums(seed: int, *, together: bool) -> list[Any]:
        scheduler = hostile_scheduler(
            served.runner, served.shape, served.dtype, grid=GRID, n_blocks=400, seed=seed
        )
        mine = [job(p, 0, pooling=kind) for p in prompts() for kind in KINDS]
        if together:
            scheduler.serve([*mine, *(job(p, 6) for p in prompts())], preempt=0.1)
        else:
            for one in mine:
                scheduler.serve([one])
        return [one.pooled for one in mine]

    alone = sums(0, together=False)
    assert sums(1, together=True) == sums(2, together=True) == alone
    n_cells = [-(-n // GRID) for n in PROMPT_LENGTHS]
    assert [len(pooled) for pooled in alone[KINDS.index("mean") :: len(KINDS)]] == n_cells


# What checkpoints say


@pytest.mark.parametrize(
    ("mode", "options", "pooling"),
    [
        ("lasttoken", {}, Pooling("last", True, 128)),
        ("mean", {"normalised": False}, Pooling("mean", False, 128)),
        ("cls", {"matryoshka": True}, Pooling("first", True, 128, shortens=True)),
    ],
)
def test_a_checkpoint_says_how(mode: str, options: Any, pooling: Pooling, tmp_path: Path) -> None:
    folder = checkpoint("qwen3", tmp_path / "checkpoint", mode, **options)
    entry = Catalogue(tmp_path).register_folder("made", folder)
    assert entry.embedding == pooling
    assert embedding_of_document(json.loads(json.dumps(embedding_document(pooling)))) == pooling


def said(folder: Path) -> Embedding:
    return embedding_in(folder, AutoConfig.from_pretrained(folder), 128)


def test_files_of_later_versions_are_read(tmp_path: Path) -> None:
    folder = checkpoint("qwen3", tmp_path, "mean")
    later = {"embedding_dimension": 128, "pooling_mode": "lasttoken", "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(later))
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        module["type"] = module["type"].replace("models", "sentence_transformer.modules")
    (folder / "modules.json").write_text(json.dumps(modules))
    assert said(folder) == Pooling("last", True, 128)


def in_config(**fields: object) -> Callable[[Path], object]:
    return lambda folder: in_file(folder / "config.json", **fields)


def in_pooling(**fields: object) -> Callable[[Path], object]:
    return lambda folder: in_file(folder / "1_Pooling" / "config.json", **fields)


def in_file(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def modules(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "modules.json").write_text(text)


def listed(*kinds: str, path: str = "1_Pooling") -> Callable[[Path], object]:
    return modules(json.dumps([{"type": f"a.{kind}", "path": path} for kind in kinds]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "modules.json").unlink(), "has no pooling configuration"),
        (lambda folder: (folder / "1_Pooling" / "config.json").unlink(), "1_Pooling/config.json: .*missing"),
        (modules("{"), "modules.json cannot be read"),
        (modules("[" * 50_000), "modules.json cannot be read"),
        (modules(" " * 70_000), "modules.json has more than"),
        (modules("[]"), "lists 0 modules"),
        (modules("7"), "modules.json is damaged"),
        (modules('[{"type": 1}]'), "modules.json is damaged"),
        (listed("Transformer", "Pooling", "Dense"), "Transformer, Pooling, Dense"),
        (listed("Transformer", "Pooling", path="../1_Pooling"), "is not the name of a folder"),
        (in_pooling(word_embedding_dimension=64), "64 dimensions, and the hidden states have 128"),
        (in_pooling(word_embedding_dimension=[1]), "dimensions, and the hidden states have 128"),
        (in_pooling(pooling_mode_max_tokens=True), "pools by mean, pooling_mode_max_tokens"),
        (in_pooling(pooling_mode="weightedmean"), "pools by weightedmean"),
        (in_pooling(pooling_mode_mean_tokens=False), "pools by nothing"),
        (in_config(use_bidirectional_attention=True), "only causal attention"),
        (in_config(is_causal=False), "only causal attention"),
        (in_config(matryoshka_dimensions=[64, 500]), "matryoshka_dimensions is not a list"),
    ],
)
def test_a_checkpoint_that_says_otherwise_has_a_reason(
    change: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    folder = checkpoint("qwen3", tmp_path, "mean")
    change(folder)
    found = said(folder)
    assert isinstance(found, NoPooling)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found.reason)
    assert str(folder) not in found.reason
    assert embedding_of_document(embedding_document(found)) == found


def test_lengths_of_matryoshka_are_read(tmp_path: Path) -> None:
    folder = checkpoint("qwen3", tmp_path, "mean")
    in_config(matryoshka_dimensions=[64, 32])(folder)
    assert said(folder) == Pooling("mean", True, 128, shortens=True, lengths=(32, 64))


def test_an_entry_of_an_earlier_version_says_so(tmp_path: Path) -> None:
    entry = Catalogue(tmp_path).register_folder("old", checkpoint("llama", tmp_path / "checkpoint", "mean"))
    document = json.loads((entry.path / "entry.json").read_text())
    del document["embedding"]
    (entry.path / "entry.json").write_text(json.dumps(document))
    found = Catalogue(tmp_path).stored.get("old").embedding
    assert isinstance(found, NoPooling)
    assert "register it again" in found.reason
