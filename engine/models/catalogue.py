"""The catalogue: a folder of models that are ready to be served, one subfolder each.

    <root>/models/<name>/
        manifest.json        what the weight image holds, and the file it is in
        weights.image        the image, unless the checkpoint's own file serves as it
        config.json, generation_config.json, tokenizer files
        entry.json           what the operator said at registration

An entry appears whole or not at all: it is made under another name and renamed. Two entries of one source are two models,
with images of their own in memory. Architectures that cannot be served are refused here (`probe.py`), as are checkpoints
that are not whole.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from tokenmux.engine.core.errors import (
    AlreadyExists,
    BadCheckpoint,
    InvalidRequest,
    NotFound,
    Overloaded,
    TokenmuxError,
    UnsupportedModel,
)
from tokenmux.engine.core.facts import ModelFacts
from tokenmux.engine.models.checkpoint import find_weights
from tokenmux.engine.models.convert import image_from_folder, image_from_gguf
from tokenmux.engine.models.facts import BLOCK_TOKENS, model_facts
from tokenmux.engine.models.files import atomic_file
from tokenmux.engine.models.image import Manifest, Progress, no_progress
from tokenmux.engine.models.probe import probe
from tokenmux.engine.models.quiet import quiet_transformers
from tokenmux.engine.models.skeleton import Skeleton, empty_model
from tokenmux.engine.models.tokenizer import Tokenizer

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MANIFEST, _ENTRY, _IMAGE = "manifest.json", "entry.json", "weights.image"
_TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_COMPUTED_IN = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue: where it is, what it is, and how to make the parts that run it."""

    name: str
    path: Path
    facts: ModelFacts
    manifest: Manifest
    config: PreTrainedConfig
    trust_remote_code: bool = False

    @classmethod
    def load(cls, path: Path, *, block_size: int = BLOCK_TOKENS) -> "Entry":
        """Read the entry in folder `path`. Raises NotFound or BadCheckpoint."""
        if not path.is_dir():
            raise NotFound(f"no model named {path.name} in the catalogue {path.parent}")
        manifest = Manifest.load(path / _MANIFEST)
        said = _read_json(path / _ENTRY)
        trust = bool(said.get("trust_remote_code", False))
        config = _load_config(path, trust)
        model = empty_model(config, manifest.dtype, trust_remote_code=trust)
        facts = model_facts(path.name, model, manifest, block_size=block_size)
        return cls(path.name, path, facts, manifest, config, trust)

    def skeleton(self, *, packed: bool = False) -> Skeleton:
        """The empty model of this entry, to be bound to its image; with `packed`, to one that `Skeleton.pack` rearranged."""
        return Skeleton(self.config, self.manifest, packed=packed, trust_remote_code=self.trust_remote_code)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of this entry."""
        return Tokenizer.load(self.path, self.facts.vocab_size, trust_remote_code=self.trust_remote_code)


class Catalogue:
    """The models under `<root>/models`. Registering is for one process at a time; reading is for any number."""

    def __init__(self, root: Path, *, block_size: int = BLOCK_TOKENS) -> None:
        self._models = root / "models"
        self._block_size = block_size

    def names(self) -> tuple[str, ...]:
        """Names of all entries, sorted."""
        if not self._models.is_dir():
            return ()
        return tuple(sorted(p.name for p in self._models.iterdir() if _NAME.fullmatch(p.name)))

    def entries(self) -> tuple[Entry, ...]:
        """All entries, sorted by name. Raises BadCheckpoint for a damaged one."""
        return tuple(self.get(name) for name in self.names())

    def get(self, name: str) -> Entry:
        """The entry `name`. Raises NotFound or BadCheckpoint."""
        return Entry.load(self._models / _checked(name), block_size=self._block_size)

    def remove(self, name: str) -> None:
        """Delete the entry `name`, with its image if it has one of its own. Raises NotFound."""
        path = self._models / _checked(name)
        if not path.is_dir():
            raise NotFound(f"no model named {name} in the catalogue {self._models}")
        # Renamed first, so that a deletion that is cut short leaves no half entry under the name.
        doomed = Path(tempfile.mkdtemp(prefix=".removed-", dir=self._models))
        path.rename(doomed / name)
        shutil.rmtree(doomed)

    def register_folder(
        self,
        name: str,
        folder: Path,
        *,
        dtype: str | None = None,
        trust_remote_code: bool = False,
        progress: Progress = no_progress,
    ) -> Entry:
        """Add the checkpoint in `folder` (config.json, tokenizer, one safetensors file or shards) under `name`.

        `dtype` is `bfloat16`, `float16` or `float32`; by default the checkpoint's own. Where the checkpoint's file is the image,
        it is used where it lies and must stay there. Raises AlreadyExists, NotFound, BadCheckpoint, UnsupportedModel, DoesNotFit.
        """

        def fill(target: Path) -> Manifest:
            config, chosen = describe_folder(folder, dtype=dtype, trust_remote_code=trust_remote_code)
            probe(config, trust_remote_code=trust_remote_code)
            model = empty_model(config, chosen, trust_remote_code=trust_remote_code)
            for file in _text_files(folder, with_code=trust_remote_code):
                shutil.copy(file, target / file.name)
            return image_from_folder(
                folder,
                config,
                model,
                target / _IMAGE,
                dtype=chosen,
                trust_remote_code=trust_remote_code,
                progress=progress,
            )

        return self._add(name, fill, trust_remote_code)

    def register_gguf(
        self, name: str, file: Path, *, dtype: str = "bfloat16", progress: Progress = no_progress
    ) -> Entry:
        """Add the model in a GGUF file under `name`, its weights dequantised to `dtype`. Raises as `register_folder`."""

        def fill(target: Path) -> Manifest:
            checkpoint_from_gguf(file, target)
            manifest, config = image_from_gguf(
                file, target / _IMAGE, dtype=_named_dtype(dtype), progress=progress
            )
            config.save_pretrained(target)
            probe(config)
            return manifest

        return self._add(name, fill, False)

    def pull(
        self,
        repository: str,
        *,
        name: str | None = None,
        revision: str | None = None,
        dtype: str | None = None,
        trust_remote_code: bool = False,
        progress: Progress = no_progress,
    ) -> Entry:
        """Download `ORG/NAME` from the model hub and register it, by default under NAME.

        Raises NotFound when the hub has no such repository, Overloaded when it cannot be reached, and as `register_folder`.
        """
        name = name or repository.rsplit("/", 1)[-1]
        self._refuse_taken(name)
        patterns = ["*.safetensors", "model.safetensors.index.json", *_TEXT_FILES]
        try:
            folder = snapshot_download(
                repository,
                revision=revision,
                allow_patterns=patterns + (["*.py"] if trust_remote_code else []),
            )
        except HFValidationError as error:
            raise InvalidRequest(f"{repository}: {error}") from None
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise NotFound(
                f"{repository}: not on the hub at this revision, or not public (set HF_TOKEN)"
            ) from None
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise Overloaded(
                f"{repository}: the hub cannot be reached ({type(error).__name__}); try again, or register a local folder"
            ) from error
        return self.register_folder(
            name, Path(folder), dtype=dtype, trust_remote_code=trust_remote_code, progress=progress
        )

    def _refuse_taken(self, name: str) -> Path:
        path = self._models / _checked(name)
        if path.exists():
            raise AlreadyExists(f"a model named {name} is registered; remove it or choose another name")
        return path

    def _add(self, name: str, fill: Callable[[Path], Manifest], trust_remote_code: bool) -> Entry:
        """Make an entry in a folder beside the others and give it its name at the end."""
        path = self._refuse_taken(name)
        try:
            self._models.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self._models))
        except OSError as error:
            raise TokenmuxError(f"{self._models}: cannot be written ({error.strerror})") from error
        try:
            manifest = fill(work)
            with quiet_transformers():
                Skeleton(_load_config(work, trust_remote_code), manifest, trust_remote_code=trust_remote_code)
            with atomic_file(work / _ENTRY) as out:
                out.write(json.dumps({"trust_remote_code": trust_remote_code}).encode())
            manifest.save(work / _MANIFEST)
            work.rename(path)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return Entry.load(path, block_size=self._block_size)


def describe_folder(
    folder: Path, *, dtype: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedConfig, torch.dtype]:
    """Config and dtype that the checkpoint in `folder` would be served with. Reads no weights; raises as `register_folder`."""
    files = find_weights(folder)
    config = _load_config(folder, trust_remote_code)
    stored = next((t.torch_dtype for f in files for t in f.tensors.values()), torch.float32)
    return config, _chosen_dtype(dtype, config, stored)


def checkpoint_from_gguf(file: Path, target: Path) -> None:
    """Write the tokenizer that a GGUF file holds into folder `target`. Raises NotFound or BadCheckpoint."""
    if not file.is_file():
        raise NotFound(f"{file}: no such file")
    with file.open("rb") as start:
        if start.read(4) != b"GGUF":
            raise BadCheckpoint(f"{file}: not a GGUF file")
    try:
        with quiet_transformers():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                str(file.parent), gguf_file=file.name, local_files_only=True
            )
            tokenizer.save_pretrained(str(target))
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise BadCheckpoint(f"{file}: transformers cannot read it ({reason})") from error


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name!r} is not a model name: letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )
    return name


def _load_config(folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    _read_json(folder / "config.json")
    try:
        with quiet_transformers():
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=trust_remote_code
            )
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise UnsupportedModel(f"{folder / 'config.json'}: {reason}") from error
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadCheckpoint(f"{path}: the file is missing") from None
    except ValueError as error:
        raise BadCheckpoint(f"{path}: damaged ({error})") from None
    if not isinstance(document, dict):
        raise BadCheckpoint(f"{path}: damaged (not an object)")
    return document


def _text_files(folder: Path, *, with_code: bool) -> list[Path]:
    found = [folder / name for name in _TEXT_FILES if (folder / name).is_file()]
    return found + (sorted(folder.glob("*.py")) if with_code else [])


def _named_dtype(name: str) -> torch.dtype:
    by_name = {str(dtype).removeprefix("torch."): dtype for dtype in _COMPUTED_IN}
    if name not in by_name:
        raise InvalidRequest(f"dtype {name!r} is not one of {', '.join(by_name)}")
    return by_name[name]


def _chosen_dtype(name: str | None, config: PreTrainedConfig, stored: torch.dtype) -> torch.dtype:
    """The type to compute in: as asked, else as the config says, else as stored."""
    if name is not None:
        return _named_dtype(name)
    chosen = config.dtype or stored
    if chosen not in _COMPUTED_IN:
        supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in _COMPUTED_IN)
        raise UnsupportedModel(f"weights of type {chosen}: ask for one of {supported}")
    return chosen
