"""The catalogue: makes entries of checkpoints (`stored_entries.py` has what lies in it).

An entry appears whole or not at all: it is made under another name and renamed. Two entries of one source are
two models, with images of their own in memory. Architectures that cannot be served are refused here
(`probe.py`), as are checkpoints that are not whole.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import PreTrainedConfig

from tokenmux.core.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    NotServable,
    Overloaded,
    TokenmuxError,
    UnsupportedModel,
)
from tokenmux.core.facts import BLOCK_TOKENS
from tokenmux.core.progress import Progress, no_progress
from tokenmux.models.atomic_files import atomic_file
from tokenmux.models.catalogue.config_limits import check_size
from tokenmux.models.catalogue.conversion import image_from_folder
from tokenmux.models.catalogue.entry import (
    ENTRY,
    IMAGE,
    MANIFEST,
    Entry,
    entry_document,
    is_current,
)
from tokenmux.models.catalogue.locks import Claim, alone_in
from tokenmux.models.catalogue.model_facts import hidden_width, model_facts
from tokenmux.models.catalogue.pooling_config import POOLING_FILES, embedding_in
from tokenmux.models.catalogue.probe import probe
from tokenmux.models.catalogue.safetensors_checkpoint import find_weights
from tokenmux.models.catalogue.stored_entries import StoredEntries, checked_name, disk_errors
from tokenmux.models.config_file import load_model_config
from tokenmux.models.foreign_errors import first_line, is_foreign
from tokenmux.models.json_files import read_object
from tokenmux.models.network.skeleton import Skeleton, empty_model
from tokenmux.models.text.checkpoint_tokenizer import CheckpointTokenizer
from tokenmux.models.text.text_files import TRIAL_S, write_text_files
from tokenmux.models.transformers_log import quiet_transformers
from tokenmux.models.weights.image import DTYPES
from tokenmux.models.weights.manifest import Manifest

_CONFIG_FILES = ("config.json", "generation_config.json")
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "additional_chat_templates/*",
)
_COMPUTED_IN = (torch.bfloat16, torch.float16, torch.float32)


class Catalogue:
    """Registers models under `<root>/models`; `stored` are those that are there. Any number of processes may
    register, remove and read at the same time.

    `told_memory` is called with the number of weight bytes before a checkpoint is loaded: a process under a
    memory limit has to allow for them.
    """

    def __init__(
        self,
        root: Path,
        *,
        block_size: int = BLOCK_TOKENS,
        trial_s: float = TRIAL_S,
        told_memory: Callable[[int], None] = lambda n_bytes: None,
    ) -> None:
        self.stored = StoredEntries(root, block_size=block_size)
        self._models = self.stored.folder
        self._block_size = block_size
        self._trial_s = trial_s
        self._told_memory = told_memory

    def bring_up_to_date(self, name: str) -> Entry:
        """Add to the entry `name` whatever an earlier version did not write into it. Raises as
        `register_folder`."""
        path = self._models / checked_name(name)
        if path.is_dir() and not is_current(path):
            with self._reasons(f"the catalogue's entry {path}"):
                manifest = Manifest.load(path / MANIFEST)
                trust = bool(read_object(path / ENTRY).get("trust_remote_code", False))
                self._complete(name, path, manifest, path, trust)
        return self.stored.get(name)

    def register_folder(
        self,
        name: str,
        folder: Path,
        *,
        dtype: str | None = None,
        trust_remote_code: bool = False,
        progress: Progress = no_progress,
    ) -> Entry:
        """Add the checkpoint in `folder` (config.json, tokenizer, one safetensors file or shards) under
        `name`.

        `dtype` is `bfloat16`, `float16` or `float32`; by default the checkpoint's own. If the checkpoint's
        file can serve as the image, it is used in place and must stay there. Raises AlreadyExists, NotFound,
        BadCheckpoint, UnsupportedModel, DoesNotFit.
        """

        def fill(target: Path) -> Manifest:
            config, chosen = describe_folder(folder, dtype=dtype, trust_remote_code=trust_remote_code)
            probe(config, trust_remote_code=trust_remote_code)
            model = empty_model(config, chosen, trust_remote_code=trust_remote_code)
            self._told_memory(sum(file.n_bytes for file in find_weights(folder)))
            for file in _files_to_keep(folder, with_code=trust_remote_code):
                shutil.copy(file, target / file.name)
            return image_from_folder(
                folder,
                config,
                model,
                target / IMAGE,
                dtype=chosen,
                trust_remote_code=trust_remote_code,
                progress=progress,
            )

        return self._add(name, fill, folder, progress, trust_remote_code=trust_remote_code)

    def register_gguf(
        self, name: str, file: Path, *, dtype: str = "bfloat16", progress: Progress = no_progress
    ) -> Entry:
        """Add the model in a GGUF file (or several: any of them) under `name`, its weights dequantised to
        `dtype`.

        Raises as `register_folder`.
        """

        def fill(target: Path) -> Manifest:
            # Imported only here: a machine that is lent for its GPU need not have the package.
            from tokenmux.models.catalogue.gguf.gguf_checkpoint import GgufCheckpoint

            checkpoint = GgufCheckpoint.open(file)
            self._told_memory(checkpoint.n_bytes)
            checkpoint.write_text(target)
            probe(checkpoint.config)
            return checkpoint.write_image(target / IMAGE, dtype=_named_dtype(dtype), progress=progress)

        return self._add(name, fill, file, progress)

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

        Raises NotFound if the hub has no such repository, Overloaded if the hub cannot be reached, and as
        `register_folder`.
        """
        name = name or repository.rsplit("/", 1)[-1]
        self._refuse_taken(name)
        patterns = ["*.safetensors", "*.safetensors.index.json", *_CONFIG_FILES, *_TOKENIZER_FILES]
        patterns += POOLING_FILES
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
                f"{repository}: the hub cannot be reached ({type(error).__name__}); try again, or "
                "register a local folder"
            ) from error
        return self.register_folder(
            name, Path(folder), dtype=dtype, trust_remote_code=trust_remote_code, progress=progress
        )

    def _refuse_taken(self, name: str) -> Path:
        path = self._models / checked_name(name)
        if path.exists():
            raise AlreadyExists(f"a model named {name} is registered; remove it or choose another name")
        return path

    def _add(
        self,
        name: str,
        fill: Callable[[Path], Manifest],
        source: Path,
        progress: Progress,
        *,
        trust_remote_code: bool = False,
    ) -> Entry:
        """Build an entry in a folder beside the others, and give it its name at the end."""
        path = self._refuse_taken(name)
        with self._reasons(str(source)):
            self._models.mkdir(parents=True, exist_ok=True)
            with alone_in(self._models):
                work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self._models))
                working = Claim(work)
            try:
                try:
                    manifest = fill(work)
                    manifest.save(work / MANIFEST)
                    text_from = source if source.is_dir() else work
                    progress(f"checking the text of {source}", 0, 1)
                    self._complete(name, work, manifest, text_from, trust_remote_code)
                    progress(f"checking the text of {source}", 1, 1)
                except TokenmuxError as error:
                    raise type(error)(str(error).replace(str(work), str(source))) from error
                with alone_in(self._models):
                    self._refuse_taken(name)
                    work.rename(path)
            finally:
                working.release()
                shutil.rmtree(work, ignore_errors=True)
        return self.stored.get(name)

    def _complete(
        self, name: str, entry: Path, manifest: Manifest, text_from: Path, trust_remote_code: bool
    ) -> None:
        """Check that the model can be built and its text tokenized, and write the files that the front
        reads."""
        config = load_model_config(entry, trust_remote_code=trust_remote_code)
        with quiet_transformers():
            skeleton = Skeleton(config, manifest, trust_remote_code=trust_remote_code)
        facts = model_facts(name, skeleton.model, manifest, block_size=self._block_size)
        tokenizer = CheckpointTokenizer.load(text_from, facts.vocab_size, trust_remote_code=trust_remote_code)
        with quiet_transformers():
            write_text_files(
                entry,
                tokenizer.backend,
                vocab_size=facts.vocab_size,
                stop_token_ids=tokenizer.stop_token_ids,
                trial_s=self._trial_s,
            )
        embedding = embedding_in(text_from, config, hidden_width(skeleton.model))
        document = entry_document(facts, embedding, trust_remote_code=trust_remote_code)
        with atomic_file(entry / ENTRY) as out:
            out.write(json.dumps(document).encode())

    @contextmanager
    def _reasons(self, source: str) -> Iterator[None]:
        """Turn any exception that foreign code raises in the block into a refusal of `source`, with the
        reason."""
        try:
            with disk_errors(self._models):
                yield
        except TokenmuxError:
            raise
        except MemoryError as error:
            raise NotServable(f"{source}: registering it takes more memory than there is") from error
        except BaseException as error:
            if not is_foreign(error):
                raise
            raise UnsupportedModel(f"{source}: {first_line(error)} ({type(error).__name__})") from error


def describe_folder(
    folder: Path, *, dtype: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedConfig, torch.dtype]:
    """Config and dtype that the checkpoint in `folder` would be served with. Reads no weights; raises as
    `register_folder`."""
    files = find_weights(folder)
    config = load_model_config(folder, trust_remote_code=trust_remote_code)
    stored = next((DTYPES[t.dtype] for f in files for t in f.tensors.values()), torch.float32)
    check_size(
        folder / "config.json", config, sum(f.n_bytes for f in files), trust_remote_code=trust_remote_code
    )
    return config, _chosen_dtype(dtype, config, stored)


def _files_to_keep(folder: Path, *, with_code: bool) -> list[Path]:
    found = [folder / name for name in _CONFIG_FILES if (folder / name).is_file()]
    return found + (sorted(folder.glob("*.py")) if with_code else [])


def _named_dtype(name: str) -> torch.dtype:
    by_name = {str(dtype).removeprefix("torch."): dtype for dtype in _COMPUTED_IN}
    if name not in by_name:
        raise InvalidRequest(f"dtype {name!r} is not one of {', '.join(by_name)}")
    return by_name[name]


def _chosen_dtype(name: str | None, config: PreTrainedConfig, stored: torch.dtype) -> torch.dtype:
    """The type to compute in: the requested one, otherwise the config's, otherwise that of the stored
    weights."""
    if name is not None:
        return _named_dtype(name)
    chosen = config.dtype or stored
    if chosen not in _COMPUTED_IN:
        supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in _COMPUTED_IN)
        raise UnsupportedModel(f"weights of type {chosen}: ask for one of {supported}")
    return chosen
