"""What a checkpoint says of embeddings, in the files of sentence-transformers.

    modules.json            Transformer, Pooling, and Normalize or nothing
    1_Pooling/config.json   which tokens count, and how many dimensions there are
    config.json             `is_matryoshka` or `matryoshka_dimensions`, if shorter vectors are useful

A checkpoint without them, or with others, generates text all the same: what is missing is kept as a reason.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmux.core.errors import BadCheckpoint
from tokenmux.core.pooling import Embedding, NoPooling, Pooling, PoolingKind
from tokenmux.models.foreign_errors import first_line
from tokenmux.models.json_files import read_object

if TYPE_CHECKING:  # entries are read without transformers
    from transformers import PreTrainedConfig

MODULES = "modules.json"
POOLING_FILES = (MODULES, "*_Pooling/config.json")
"""Patterns of the files that are read here."""

_MAX_BYTES = 1 << 16
_MAX_MODULES = 16
_MAX_LENGTHS = 64
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_MODES: Mapping[str, PoolingKind] = {
    "lasttoken": "last",
    "mean": "mean",
    "cls": "first",
}
"""Pooling modes by the names of sentence-transformers."""
_FLAGS = {
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}
"""The same as flags, in files of earlier versions."""


class _Unusable(Exception):
    """Why a checkpoint makes no embeddings."""


def embedding_in(folder: Path, config: "PreTrainedConfig", width: int) -> Embedding:
    """How the checkpoint in `folder` makes embeddings, or why it does not. `width` is the number of
    dimensions of its hidden states."""
    try:
        return _pooling(folder, config, width)
    except _Unusable as why:
        return NoPooling(str(why))
    except BadCheckpoint as error:
        return NoPooling(str(error).replace(f"{folder}/", ""))


def write_pooling_files(folder: Path, mode: str, width: int) -> None:
    """Write what `embedding_in` reads, for a checkpoint that says otherwise how it pools. Its vectors are
    normalised, as llama.cpp does with all of them."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (folder / MODULES).write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    said = {"word_embedding_dimension": width, "pooling_mode": mode}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said), encoding="utf-8")


def embedding_document(embedding: Embedding) -> dict[str, object]:
    """What `embedding_of_document` reads, for a JSON file."""
    if isinstance(embedding, NoPooling):
        return {"none": embedding.reason}
    return {
        "kind": embedding.kind,
        "normalised": embedding.normalised,
        "n_dimensions": embedding.n_dimensions,
        "shortens": embedding.shortens,
        "lengths": list(embedding.lengths),
    }


def embedding_of_document(document: Mapping[str, Any] | None) -> Embedding:
    """The value that `embedding_document` wrote; None if an earlier version did not. Raises KeyError or
    TypeError."""
    if document is None:
        return NoPooling("it was registered by a version that did not look for it; register it again")
    if "none" in document:
        return NoPooling(document["none"])
    kind: PoolingKind = document["kind"]
    return Pooling(
        kind,
        document["normalised"],
        document["n_dimensions"],
        document["shortens"],
        tuple(document["lengths"]),
    )


def _pooling(folder: Path, config: "PreTrainedConfig", width: int) -> Pooling:
    modules = _modules(folder / MODULES)
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise _Unusable(
            f"{MODULES} lists {', '.join(kinds)}; served are Transformer and Pooling, with or without "
            "Normalize"
        )
    if getattr(config, "is_causal", True) is False or getattr(config, "use_bidirectional_attention", False):
        raise _Unusable("its tokens attend to later ones (config.json), and only causal attention is served")
    path = modules[1][1]
    if not _FOLDER.fullmatch(path):
        raise _Unusable(f"{MODULES}: {path[:64]!r} is not the name of a folder")
    name = f"{path}/config.json"
    said = _object(folder / path / "config.json")
    n_dimensions = said.get("word_embedding_dimension", said.get("embedding_dimension"))
    if n_dimensions != width:
        raise _Unusable(f"{name} has {n_dimensions!r} dimensions, and the hidden states have {width}")
    lengths = _lengths(config, width)
    shortens = bool(lengths) or getattr(config, "is_matryoshka", False) is True
    return Pooling(_kind(said, name), "Normalize" in kinds, width, shortens, lengths)


def _modules(path: Path) -> list[tuple[str, str]]:
    """The kinds and folders of the modules."""
    if not path.exists():
        raise _Unusable(f"its checkpoint has no pooling configuration ({MODULES} of sentence-transformers)")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _Unusable(f"{MODULES} has more than {_MAX_BYTES} bytes")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _Unusable(f"{MODULES} cannot be read: {first_line(error)}") from None
    try:
        if not 1 <= len(found) <= _MAX_MODULES:
            raise _Unusable(f"{MODULES} lists {len(found)} modules")
        return [(str(one["type"]).rpartition(".")[2][:64], str(one["path"])) for one in found]
    except (KeyError, TypeError):
        raise _Unusable(f"{MODULES} is damaged: it is not a list of modules with type and path") from None


def _object(path: Path) -> dict[str, Any]:
    if path.is_file() and path.stat().st_size > _MAX_BYTES:
        raise _Unusable(f"{path.parent.name}/{path.name} has more than {_MAX_BYTES} bytes")
    return read_object(path)


def _kind(said: Mapping[str, Any], name: str) -> PoolingKind:
    """The pooling mode, which is a name (or a list of them) or a flag that is true."""
    mode = said.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else mode if isinstance(mode, list) else []
    if mode is None:
        modes = [
            _FLAGS.get(flag, flag) for flag, on in said.items() if flag.startswith("pooling_mode_") and on
        ]
    if len(modes) != 1 or modes[0] not in _MODES:
        listed = ", ".join(str(one)[:64] for one in modes[:8]) or "nothing"
        raise _Unusable(f"{name} pools by {listed}; served is one of {', '.join(_MODES)}")
    return _MODES[modes[0]]


def _lengths(config: "PreTrainedConfig", width: int) -> tuple[int, ...]:
    said = getattr(config, "matryoshka_dimensions", None)
    if said is None:
        return ()
    if not isinstance(said, list) or not all(type(one) is int and 1 <= one <= width for one in said):
        raise _Unusable(f"config.json: matryoshka_dimensions is not a list of numbers from 1 to {width}")
    return tuple(sorted(set(said)))[:_MAX_LENGTHS]
