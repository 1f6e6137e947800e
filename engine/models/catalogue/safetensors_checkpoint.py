"""Checkpoints as distributed: which files hold the weights, and whether they are complete.

Weights are read from safetensors files (one or several) or a GGUF file, never from pickles. This module reads
only headers and sizes; a file that is cut off or lacks tensors is found before any weight is read.
"""

import json
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmux.core.errors import BadCheckpoint, NotFound, UnsupportedModel
from tokenmux.models.atomic_files import check_regular
from tokenmux.models.catalogue.config_limits import check_counts
from tokenmux.models.catalogue.quantised_checkpoints import refuse_packed, refuse_quantised
from tokenmux.models.config_file import read_model_config
from tokenmux.models.json_files import LFS_POINTER, lfs_pointer, read_object
from tokenmux.models.weights.image import DTYPES
from tokenmux.models.weights.manifest import ITEM_BYTES, TensorEntry, check_entry

_INDEX_ENDING = "safetensors.index.json"
_INDEX = f"model.{_INDEX_ENDING}"
_SINGLE = "model.safetensors"
_ADAPTER, _ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_LARGEST_HEADER = 100 << 20


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """One safetensors file: its tensors, with offsets counted from `data_offset`, where the data section
    begins."""

    path: Path
    data_offset: int
    n_bytes: int
    tensors: Mapping[str, TensorEntry]


def find_weights(folder: Path) -> tuple[SafetensorsFile, ...]:
    """The safetensors files of a checkpoint folder, each checked to be complete.

    Raises NotFound if there is no such folder, BadCheckpoint if it is incomplete or damaged, UnsupportedModel
    if its weights are only in another format.
    """
    if not folder.is_dir():
        raise NotFound(f"{folder}: no such folder")
    try:
        check_regular(*folder.iterdir())
    except OSError as error:
        raise BadCheckpoint(f"{folder}: cannot be read ({error.strerror or error})") from error
    if (folder / "config.json").is_dir():
        raise BadCheckpoint(f"{folder}: config.json is a folder, not a file")
    if not (folder / "config.json").is_file():
        raise BadCheckpoint(f"{folder}: config.json is missing{_hint(folder)}")
    config = read_model_config(folder)
    refuse_quantised(folder, config)
    files = _read_files(folder, config.get("transformers_weights"))
    check_counts(folder / "config.json", config, sum(len(file.tensors) for file in files))
    if not config.get("quantization_config"):
        for file in files:
            refuse_packed(folder, {name: DTYPES[entry.dtype] for name, entry in file.tensors.items()})
    return files


def _read_files(folder: Path, named: object) -> tuple[SafetensorsFile, ...]:
    """Read the headers. `named` is the file that config.json names, None if it leaves that open."""
    # In the order of transformers, which loads what cannot be used in place.
    if named is not None:
        return _read_named(folder, named)
    if (folder / _SINGLE).is_file():
        return (read_safetensors(folder / _SINGLE),)
    if (folder / _INDEX).is_file():
        return _read_shards(folder / _INDEX)
    found = sorted(p for p in folder.glob("*.safetensors") if p.name != _ADAPTER)
    if len(found) == 1:
        return (read_safetensors(found[0]),)
    if found:
        raise BadCheckpoint(f"{folder}: {len(found)} safetensors files, but {_INDEX} is missing")
    others = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if others:
        raise UnsupportedModel(
            f"{folder}: weights are only in {others[0]}, a pickle, which can run code when it is opened; "
            "convert it to safetensors"
        )
    raise BadCheckpoint(f"{folder}: no weights ({_SINGLE} or {_INDEX}){_hint(folder)}")


def _read_named(folder: Path, named: object) -> tuple[SafetensorsFile, ...]:
    said = f"{folder / 'config.json'}: transformers_weights is {named!r:.80}"
    if not isinstance(named, str) or not named.endswith((".safetensors", f".{_INDEX_ENDING}")):
        raise BadCheckpoint(f"{said}, not the name of a safetensors file or of an index of several")
    if Path(named).name != named or "\0" in named:
        raise BadCheckpoint(f"{said}, which is not a file of this folder")
    if not (folder / named).is_file():
        raise BadCheckpoint(f"{said}, and there is no such file")
    if named.endswith(_INDEX_ENDING):
        return _read_shards(folder / named)
    return (read_safetensors(folder / named),)


def _hint(folder: Path) -> str:
    """What a folder that is not a checkpoint seems to be, and what to name instead."""
    adapter = folder / _ADAPTER_CONFIG
    if adapter.is_file():
        try:
            base = str(read_object(adapter).get("base_model_name_or_path") or "another model")
        except BadCheckpoint:
            base = "another model"
        return f": this is an adapter of {base[:200]}; merge it into that model and register the result"
    if gguf := sorted(folder.glob("*.gguf")):
        return f", but there is {gguf[0].name}: register that file"
    if snapshots := sorted(folder.glob("snapshots/*/config.json")):
        return f": this is a cache of the hub; register {snapshots[0].parent}"
    return ""


def read_safetensors(path: Path) -> SafetensorsFile:
    """Read and check the header of a safetensors file. Raises BadCheckpoint with the reason,
    UnsupportedModel for a type of tensor that no model here computes with."""
    check_regular(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start == LFS_POINTER[:8]:
                raise lfs_pointer(path)
            n_header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= n_header <= min(_LARGEST_HEADER, size - 8):
                raise BadCheckpoint(
                    f"{path}: not a safetensors file, or cut off in its header ({size} bytes)"
                )
            header = json.loads(file.read(n_header), object_pairs_hook=_unique)
        tensors = _entries(path, header)
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{error!r}" if isinstance(error, KeyError) else str(error)
        raise BadCheckpoint(f"{path}: the safetensors header is damaged ({reason})") from None
    placed = sorted(tensors.values(), key=lambda entry: (entry.offset, entry.n_bytes))
    end = 0
    for entry in placed:
        if entry.offset != end:
            what = "overlaps the one before it" if entry.offset < end else "begins after a gap"
            raise BadCheckpoint(f"{path}: the safetensors header is damaged (tensor {entry.name} {what})")
        end += entry.n_bytes
    data_offset = 8 + n_header
    if size != data_offset + end:
        what = "cut off" if size < data_offset + end else "too long"
        raise BadCheckpoint(f"{path}: {what}, {size} bytes instead of {data_offset + end}")
    return SafetensorsFile(path, data_offset, end, tensors)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError if a name occurs twice: readers differ in which one they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice!r} occurs in it twice")
    return found


def _entries(path: Path, header: Any) -> dict[str, TensorEntry]:
    """The tensors of a header. Raises ValueError, KeyError, TypeError or AttributeError if one is
    malformed."""
    if not isinstance(header, dict):
        raise TypeError("not an object")
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not isinstance(metadata, dict):
        raise TypeError("__metadata__ is not an object")
    tensors = {}
    for name, description in header.items():
        dtype, shape = description["dtype"], tuple(description["shape"])
        begin, end = description["data_offsets"]
        if isinstance(dtype, str) and dtype not in ITEM_BYTES:
            raise UnsupportedModel(
                f"{path}: tensor {name} is of type {dtype}; supported are {', '.join(ITEM_BYTES)}"
            )
        entry = TensorEntry(name, dtype, shape, begin, end - begin)
        check_entry(entry, end)
        tensors[name] = entry
    return tensors


def _read_shards(index: Path) -> tuple[SafetensorsFile, ...]:
    folder = index.parent
    try:
        document = json.loads(index.read_bytes())
        file_of: dict[str, str] = document["weight_map"]
        names = sorted(set(file_of.values()))
        paths = [Path(name) for name in names]
    except OSError as error:
        raise BadCheckpoint(f"{index}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadCheckpoint(f"{index}: damaged ({error!r})") from None
    if not isinstance(document.get("metadata"), dict):
        # transformers, which loads shards, fails without it.
        raise BadCheckpoint(f'{index}: add an object "metadata" to it, which may be empty')
    for name, path in zip(names, paths, strict=True):
        if path.name != name or "\0" in name:
            raise BadCheckpoint(f"{index}: names {name}, which is not a file of this folder")
        if not (folder / name).is_file():
            raise BadCheckpoint(f"{folder / name}: the shard is missing")
    shards = {name: read_safetensors(folder / name) for name in names}
    for tensor, name in file_of.items():
        if tensor not in shards[name].tensors:
            raise BadCheckpoint(f"{folder / name}: tensor {tensor} is missing")
    shard_of: dict[str, str] = {}
    for name, shard in shards.items():
        for tensor in shard.tensors:
            if (other := shard_of.setdefault(tensor, name)) != name:
                raise BadCheckpoint(
                    f"{folder}: tensor {tensor} is both in {other} and in {name}; remove one of them"
                )
    return tuple(shards.values())
