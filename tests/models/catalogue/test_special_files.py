"""Pipes and devices in the place of a checkpoint's files are refused before anything opens them, which
might never return."""

import os
from pathlib import Path

import pytest

from tokenmux.core.errors import BadCheckpoint
from tokenmux.models.atomic_files import check_regular
from tokenmux.models.catalogue.gguf.header import read_header
from tokenmux.models.catalogue.safetensors_checkpoint import find_weights, read_safetensors

FILES = [
    "config.json",
    "model.safetensors",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "x",
]


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_a_checkpoint_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(BadCheckpoint, match=f"{name}: is a pipe, socket or device"):
        find_weights(tmp_path)


@pytest.mark.parametrize("read", [read_safetensors, read_header])
def test_links_are_followed_to_a_device(tmp_path: Path, read) -> None:
    (tmp_path / "model").symlink_to("/dev/zero")
    with pytest.raises(BadCheckpoint, match="is a pipe, socket or device"):
        read(tmp_path / "model")


def test_folders_files_and_what_is_missing_are_none_of_these(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    check_regular(tmp_path, tmp_path / "file", tmp_path / "loop", tmp_path / "missing")


def test_a_folder_in_the_place_of_the_config_is_not_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(BadCheckpoint, match=r"config\.json is a folder, not a file"):
        find_weights(tmp_path)
