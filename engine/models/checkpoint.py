"""Checkpoints as they come: which files hold the weights, and whether they are whole.

Weights are read from safetensors files (one or several) or a GGUF file, never from pickles. Everything here reads headers
and sizes only; a file that is cut off or lacks tensors is found before any weight is touched.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from tokenmux.engine.core.errors import BadCheckpoint, NotFound, UnsupportedModel
from tokenmux.engine.models.image import DTYPES, TensorEntry

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_LARGEST_HEADER = 100 << 20


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """One safetensors file: its tensors, with offsets counted from `data_offset`, where the data section begins."""

    path: Path
    data_offset: int
    n_bytes: int
    tensors: Mapping[str, TensorEntry]


def find_weights(folder: Path) -> tuple[SafetensorsFile, ...]:
    """The safetensors files of a checkpoint folder, each checked to be whole.

    Raises NotFound when there is no such folder, BadCheckpoint when it is incomplete or damaged, UnsupportedModel when it
    has its weights only in another format.
    """
    if not folder.is_dir():
        raise NotFound(f"{folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise BadCheckpoint(f"{folder}: config.json is missing")
    if (folder / _INDEX).is_file():
        return _read_shards(folder)
    if (folder / _SINGLE).is_file():
        return (read_safetensors(folder / _SINGLE),)
    found = sorted(folder.glob("*.safetensors"))
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
    raise BadCheckpoint(f"{folder}: no weights ({_SINGLE} or {_INDEX})")


def read_safetensors(path: Path) -> SafetensorsFile:
    """Read and check the header of a safetensors file. Raises BadCheckpoint with the reason."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            n_header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= n_header <= min(_LARGEST_HEADER, size - 8):
                raise BadCheckpoint(
                    f"{path}: not a safetensors file, or cut off in its header ({size} bytes)"
                )
            header: dict[str, Any] = json.loads(file.read(n_header))
        header.pop("__metadata__", None)
        tensors = {name: _entry(path, name, description) for name, description in header.items()}
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"{path}: the safetensors header is damaged ({error!r})") from None
    placed = sorted(tensors.values(), key=lambda entry: entry.offset)
    for before, after in pairwise(placed):
        if before.offset + before.n_bytes > after.offset:
            raise BadCheckpoint(f"{path}: tensors {before.name} and {after.name} overlap")
    n_bytes = max((entry.offset + entry.n_bytes for entry in placed), default=0)
    data_offset = 8 + n_header
    if size != data_offset + n_bytes:
        what = "cut off" if size < data_offset + n_bytes else "too long"
        raise BadCheckpoint(f"{path}: {what}, {size} bytes instead of {data_offset + n_bytes}")
    return SafetensorsFile(path, data_offset, n_bytes, tensors)


def _entry(path: Path, name: str, description: Mapping[str, Any]) -> TensorEntry:
    dtype, shape = str(description["dtype"]), tuple(int(size) for size in description["shape"])
    begin, end = description["data_offsets"]
    if dtype not in DTYPES:
        raise UnsupportedModel(f"{path}: tensor {name} is of type {dtype}; supported are {', '.join(DTYPES)}")
    if begin < 0 or end - begin != prod(shape) * DTYPES[dtype].itemsize:
        raise BadCheckpoint(f"{path}: tensor {name} has {end - begin} bytes, which is not {dtype} {shape}")
    return TensorEntry(name, dtype, shape, begin, end - begin)


def _read_shards(folder: Path) -> tuple[SafetensorsFile, ...]:
    index = folder / _INDEX
    try:
        file_of: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(file_of.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"{index}: damaged ({error!r})") from None
    for name in names:
        if Path(name).name != name:
            raise BadCheckpoint(f"{index}: names {name}, which is not a file of this folder")
        if not (folder / name).is_file():
            raise BadCheckpoint(f"{folder / name}: the shard is missing")
    shards = {name: read_safetensors(folder / name) for name in names}
    for tensor, name in file_of.items():
        if tensor not in shards[name].tensors:
            raise BadCheckpoint(f"{folder / name}: tensor {tensor} is missing")
    return tuple(shards.values())
