"""`tokenmux kernels warm`: what it compiles, what it says, and its errors in a line."""

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from tests.cli.runner import refused
from tokenmux.cli.app import app
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    return tmp_path / "triton"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.create("llama", tmp_path_factory.mktemp("checkpoints") / "llama")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["kernels", "warm", *map(str, arguments)], catch_exceptions=False)


def test_folders_catalogues_and_pools_name_models(llama: Path, tmp_path: Path, own_cache: Path) -> None:
    first = json.loads(run(llama, "--arch", "sm_80", "--json").stdout)
    assert (first["arch"], first["models"], first["forms"], first["compiled"]) == ("sm_80", 1, 13, 13)
    assert first["cache"] == str(own_cache)
    assert first["cache_bytes"] == sum(f.stat().st_size for f in own_cache.rglob("*") if f.is_file())

    catalogue = Catalogue(tmp_path / "catalogue")
    entry = catalogue.register_folder("kept", llama)
    pool = tmp_path / "pool.yaml"
    pool.write_text(f"catalogue: catalogue\nmodels:\n  fresh: {llama}\n")
    for arguments, n_models in (
        ([entry.path], 1),
        ([tmp_path / "catalogue", llama], 2),
        (["--config", pool], 2),
    ):
        said = run(*arguments, "--arch", "sm_80").stdout
        assert f"13 forms for {n_models} models on sm_80: 0 compiled, 13 there already" in said
        assert f"cache: {own_cache}" in said.replace("\n", "")


def test_a_cache_of_its_own_and_the_forms_of_int8(
    llama: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = tmp_path / "pool.yaml"
    devices = "devices: [{kind: cuda, paged_kv: int8}]"
    pool.write_text(f"models:\n  fresh: {llama}\ncatalogue: none\n{devices}\n")
    monkeypatch.chdir(tmp_path)
    found = json.loads(run("--config", pool, "--arch", "sm_90", "--cache", "brought", "--json").stdout)
    assert (found["forms"], found["compiled"], found["cache"]) == (15, 15, str(tmp_path / "brought"))
    assert not own_cache.exists()


def test_what_is_wrong_is_told_in_a_line(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "name model folders, or a pool.yaml" in refused(run(), 2)
    assert "there is no CUDA device here" in refused(run(llama), 2)
    assert "write sm_ and the compute capability" in refused(run(llama, "--arch", "H100"), 2)
    assert "8.0 or newer, got 7.5" in refused(run(llama, "--arch", "sm_75"), 2)
    assert "no such folder" in refused(run(tmp_path / "nothing", "--arch", "sm_90"), 1)
    (tmp_path / "empty" / "models").mkdir(parents=True)
    assert "no models there" in refused(run(tmp_path / "empty", "--arch", "sm_90"), 1)

    odd = tiny.create("llama", tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text()) | {"head_dim": 36}
    (odd / "config.json").write_text(json.dumps(config))
    assert "odd: heads of 36 numbers" in refused(run(odd, "--arch", "sm_90"), 1)

    pool = tmp_path / "pool.yaml"
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    pool.write_text(f"catalogue: {tmp_path / 'none'}\nmodels:\n  packed: {tmp_path / 'model.gguf'}\n")
    assert "packed: " in refused(run("--config", pool, "--arch", "sm_90"), 1)

    for name in [name for name in sys.modules if name.startswith("tokenmux.kernels.warm")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("tokenmux.kernels.warm", raising=False)
    monkeypatch.setitem(sys.modules, "tokenmux.kernels.kv_page.launch", None)
    monkeypatch.delattr("tokenmux.kernels.kv_page.launch", raising=False)
    assert "pip install 'tokenmux[gpu]'" in refused(run(llama, "--arch", "sm_90"), 1)


def test_the_gpu_of_the_machine_is_the_default(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert json.loads(run(llama, "--json").stdout)["arch"] == "sm_80"
