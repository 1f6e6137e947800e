"""Checkpoints on their way into the catalogue: whole ones get images, damaged ones a refusal that names
file and reason."""

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tokenmux.core.errors import (
    AlreadyExists,
    BadCheckpoint,
    DoesNotFit,
    InvalidRequest,
    NotFound,
    Overloaded,
    TokenmuxError,
    UnsupportedModel,
)
from tokenmux.models import atomic_files as files
from tokenmux.models.catalogue import catalogue as catalogue_module
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.entry import Entry
from tokenmux.models.weights.image import DTYPES, map_image


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.create("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def checkpoint(llama: Path, tmp_path: Path) -> Path:
    """A checkpoint of one file that a test may damage."""
    return Path(shutil.copytree(llama, tmp_path / "checkpoint"))


@pytest.fixture
def shards(llama: Path, tmp_path: Path) -> Path:
    """The same checkpoint in several files."""
    folder = Path(shutil.copytree(llama, tmp_path / "shards"))
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(folder, max_shard_size="500KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "root")


def weights_of(entry: Entry) -> dict[str, torch.Tensor]:
    """The tensors of an entry's image, by name."""
    image = map_image(entry.manifest, verify=True)
    return {
        t.name: image[t.offset : t.offset + t.n_bytes].clone().view(DTYPES[t.dtype]).view(t.shape)
        for t in entry.manifest.tensors.values()
    }


def left_behind(root: Path) -> list[str]:
    return [p.name for p in (root / "root" / "models").iterdir()]


def test_a_fitting_file_is_the_image_as_it_lies(catalogue: Catalogue, checkpoint: Path) -> None:
    entry = catalogue.register_folder("a", checkpoint)
    assert entry.manifest.file == checkpoint / "model.safetensors"
    assert not list(entry.path.glob("*.image"))
    expected = load_file(checkpoint / "model.safetensors")
    assert weights_of(entry).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(entry).items())


def test_shards_and_other_types_are_converted_once(catalogue: Catalogue, shards: Path, llama: Path) -> None:
    stored = load_file(llama / "model.safetensors")
    same = catalogue.register_folder("same", shards)
    other = catalogue.register_folder("other", shards, dtype="float32")
    assert same.manifest.file == same.path / "weights.image"
    assert other.facts.n_bytes == 2 * same.facts.n_bytes
    for entry, dtype in ((same, torch.bfloat16), (other, torch.float32)):
        assert all(torch.equal(tensor, stored[name].to(dtype)) for name, tensor in weights_of(entry).items())
        assert all(t.offset % 64 == 0 for t in entry.manifest.tensors.values())


def test_two_entries_of_one_source_are_two_models(catalogue: Catalogue, checkpoint: Path) -> None:
    first, second = (catalogue.register_folder(name, checkpoint) for name in ("a", "b"))
    assert first.facts.images[0].id != second.facts.images[0].id
    assert catalogue.stored.names() == ("a", "b")
    catalogue.stored.remove("a")
    assert [entry.name for entry in catalogue.stored.entries()] == ["b"]
    assert weights_of(catalogue.stored.get("b"))
    with pytest.raises(NotFound, match="no model named a"):
        catalogue.stored.get("a")


def test_facts_come_from_config_and_image(catalogue: Catalogue, checkpoint: Path) -> None:
    facts = catalogue.register_folder("a", checkpoint).facts
    assert (facts.kv.n_layers, facts.kv.n_kv_heads, facts.kv.head_dim, facts.kv.dtype_bytes) == (2, 2, 32, 2)
    assert (facts.max_context, facts.vocab_size) == (512, tiny.VOCAB_SIZE)
    # Embeddings are tied, so the output layer's product counts, once.
    assert facts.n_bytes == 2 * facts.n_parameters


def test_experts_count_by_the_share_that_is_active(catalogue: Catalogue, tmp_path: Path) -> None:
    facts = catalogue.register_folder("m", tiny.create("mixtral", tmp_path / "m")).facts
    experts = 2 * 4 * 3 * 256 * 128
    embedding = tiny.VOCAB_SIZE * 128
    assert facts.n_parameters == facts.n_bytes // 2 - embedding - experts // 2


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def rename_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.other.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def widen_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(192, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def to_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


DAMAGES: dict[str, tuple[Callable[[Path], object], type[TokenmuxError], str]] = {
    "cut off": (lambda f: truncate(f / "model.safetensors"), BadCheckpoint, "model.safetensors: cut off"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), BadCheckpoint, "not a safetensors file"),
    "bad header": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"{'no': json    }"),
        BadCheckpoint,
        "header is damaged",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), BadCheckpoint, "config.json is missing"),
    "bad config": (lambda f: (f / "config.json").write_text("{"), BadCheckpoint, "config.json: damaged"),
    "strange config": (
        lambda f: (f / "config.json").write_text('{"model_type": "nonesuch"}'),
        UnsupportedModel,
        "config.json: .*nonesuch",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), BadCheckpoint, "no weights"),
    "pickle": (to_pickle, UnsupportedModel, "pytorch_model.bin, a pickle"),
    "tensor missing": (rename_tensor, BadCheckpoint, "missing tensors, such as .*up_proj"),
    "tensor of another shape": (widen_tensor, BadCheckpoint, "model.norm.weight"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_refused_with_file_and_reason(
    catalogue: Catalogue, checkpoint: Path, tmp_path: Path, damage: str
) -> None:
    harm, error, reason = DAMAGES[damage]
    harm(checkpoint)
    with pytest.raises(error, match=reason) as caught:
        catalogue.register_folder("a", checkpoint)
    assert str(checkpoint) in str(caught.value)
    assert catalogue.stored.names() == ()
    assert left_behind(tmp_path) == []


def test_damaged_shards_are_refused(catalogue: Catalogue, shards: Path) -> None:
    first = min(shards.glob("*.safetensors"))
    content = first.read_bytes()
    first.write_bytes(content[:-10])
    with pytest.raises(BadCheckpoint, match=f"{first.name}: cut off"):
        catalogue.register_folder("a", shards)
    first.unlink()
    with pytest.raises(BadCheckpoint, match=f"{first.name}: the shard is missing"):
        catalogue.register_folder("a", shards)
    first.write_bytes(content)
    index = shards / "model.safetensors.index.json"
    document = json.loads(index.read_bytes())
    document["weight_map"]["model.extra.weight"] = first.name
    index.write_text(json.dumps(document))
    with pytest.raises(BadCheckpoint, match=r"tensor model.extra.weight is missing"):
        catalogue.register_folder("a", shards)


def test_a_damaged_gguf_file_is_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    with pytest.raises(NotFound, match=r"model\.gguf: no such file"):
        catalogue.register_gguf("a", file)
    file.write_bytes(b"something else")
    with pytest.raises(BadCheckpoint, match="not a GGUF file"):
        catalogue.register_gguf("a", file)
    file.write_bytes(b"GGUF\x03\x00\x00\x00\x05")
    with pytest.raises(BadCheckpoint, match=r"model\.gguf: damaged, or cut off in its header"):
        catalogue.register_gguf("a", file)
    assert left_behind(tmp_path) == []


def test_an_altered_image_is_noticed(catalogue: Catalogue, checkpoint: Path) -> None:
    entry = catalogue.register_folder("a", checkpoint)
    file = entry.manifest.file
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(BadCheckpoint, match="do not match their checksum"):
        map_image(entry.manifest, verify=True)
    file.write_bytes(content[:-1])
    with pytest.raises(BadCheckpoint, match="cut off"):
        map_image(entry.manifest)
    file.unlink()
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        map_image(entry.manifest)


def test_a_damaged_entry_is_noticed(catalogue: Catalogue, checkpoint: Path) -> None:
    path = catalogue.register_folder("a", checkpoint).path
    manifest = path / "manifest.json"
    document = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps(document | {"version": 99}))
    with pytest.raises(BadCheckpoint, match="manifest version 99"):
        catalogue.stored.get("a")
    manifest.write_text("{}")
    with pytest.raises(BadCheckpoint, match="the manifest is damaged"):
        catalogue.stored.get("a")
    manifest.unlink()
    with pytest.raises(BadCheckpoint, match="the manifest is missing"):
        catalogue.stored.get("a")


def test_a_full_disk_leaves_nothing_behind(
    catalogue: Catalogue, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DoesNotFit, match="the disk is full"):
        catalogue.register_folder("a", shards)
    assert left_behind(tmp_path) == []


def test_a_disk_too_small_is_refused_before_writing(tmp_path: Path) -> None:
    with (
        pytest.raises(DoesNotFit, match="the disk is full"),
        files.atomic_file(tmp_path / "x", n_bytes=1 << 62),
    ):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_half_way_does_not_appear(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"before")

    def write_half() -> None:
        with files.atomic_file(tmp_path / "x") as out:
            out.write(b"half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"before"


def test_names_are_checked(catalogue: Catalogue, checkpoint: Path) -> None:
    for name in ("", "../x", "a/b", ".hidden", "x" * 200):
        with pytest.raises(InvalidRequest, match="is not a model name"):
            catalogue.register_folder(name, checkpoint)
    catalogue.register_folder("a", checkpoint)
    with pytest.raises(AlreadyExists, match="model named a is registered"):
        catalogue.register_folder("a", checkpoint)
    with pytest.raises(NotFound, match="no such folder"):
        catalogue.register_folder("b", checkpoint / "nowhere")
    with pytest.raises(InvalidRequest, match="dtype 'int4' is not one of bfloat16"):
        catalogue.register_folder("b", checkpoint, dtype="int4")
    with pytest.raises(NotFound, match="no model named z"):
        catalogue.stored.remove("z")


def test_pulling_registers_what_the_hub_gives(
    catalogue: Catalogue, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        assert not any(pattern in ("*.py", "*.bin", "*") for pattern in allow_patterns)
        for name in (
            "named.safetensors.index.json",
            "additional_chat_templates/tool_use.jinja",
            "tokenizer.model",
            "config.json",
        ):
            assert any(fnmatch(name, pattern) for pattern in allow_patterns), name
        return str(checkpoint)

    monkeypatch.setattr(catalogue_module, "snapshot_download", download)
    assert catalogue.pull("some/model", revision="v1").name == "model"
    assert asked == [("some/model", "v1")]
    with pytest.raises(AlreadyExists):
        catalogue.pull("some/model")
    assert len(asked) == 1


def test_an_unreachable_hub_is_a_transient_error(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> str:
        raise ConnectionError

    monkeypatch.setattr(catalogue_module, "snapshot_download", download)
    with pytest.raises(Overloaded, match="some/model: the hub cannot be reached"):
        catalogue.pull("some/model")


def test_progress_is_reported_to_its_end(catalogue: Catalogue, shards: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    catalogue.register_folder(
        "a", shards, progress=lambda what, done, total: seen.setdefault(what, []).append((done, total))
    )
    assert len(seen) > 1
    for told in seen.values():
        done, totals = zip(*told, strict=True)
        assert list(done) == sorted(done)
        assert done[-1] == totals[-1] > 0
