"""The header of one GGUF file, checked against the file's size before anything is built.

Counts and sizes are believed only as far as the file has bytes for them, so a damaged header costs no more
time and memory than reading the first part of the file. Bytes outside of all tensors (alignment, anything
after the last one) are ignored.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from tokenmux.core.errors import BadCheckpoint, NotFound, UnsupportedModel
from tokenmux.core.sizes import round_up
from tokenmux.models.atomic_files import check_regular
from tokenmux.models.json_files import LFS_POINTER, lfs_pointer

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MOST_DIMENSIONS = 4
_MOST_ELEMENTS = 1 << 24
"""Largest array of metadata, in elements. The largest vocabularies have 2^18 tokens and 2^19 merges."""
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `n_bytes` at `offset` of `file`, row-major with `shape`, numbers packed as `kind` says."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    file: Path
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The content of one header: metadata by key (numbers, booleans, strings, lists of one of these),
    tensors by name."""

    file: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_header(file: Path) -> GgufHeader:
    """Read and check the header of a GGUF file.

    Raises NotFound, BadCheckpoint if it is damaged or cut off, UnsupportedModel if it has another version or
    byte order.
    """
    check_regular(file)
    try:
        with file.open("rb") as opened:
            start = opened.read(len(LFS_POINTER))
            if start == LFS_POINTER:
                raise lfs_pointer(file)
            if start[:4] != _MAGIC:
                raise BadCheckpoint(f"{file}: not a GGUF file")
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(file, data).header()
    except FileNotFoundError:
        raise NotFound(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{file}: cannot be read ({error})") from None


class _Reader:
    """Reads forward through one file."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self._file = file
        self._data = data
        self._size = len(data)
        self._at = 4

    def header(self) -> GgufHeader:
        version = self._scalar("<I", "the version")
        if version not in _VERSIONS:
            if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
                raise UnsupportedModel(
                    f"{self._file}: big-endian; convert the model for little-endian machines"
                )
            raise UnsupportedModel(f"{self._file}: GGUF version {version}; versions 2 and 3 can be read")
        n_tensors = self._scalar("<Q", "the number of tensors")
        n_keys = self._scalar("<Q", "the number of keys")
        # A key takes at least 13 bytes, a tensor 32.
        self._check_count("keys", n_keys, 13)
        self._check_count("tensors", n_tensors, 32)
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._string("a key")
            if key in metadata:
                raise self._damaged(f"the key {key!r} occurs twice")
            metadata[key] = self._value(self._scalar("<I", f"the type of {key}"), key)
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {_show(alignment)}, not a power of two")
        described = [self._tensor() for _ in range(n_tensors)]
        start = round_up(self._at, alignment)
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset, n_bytes in described:
            if name in tensors:
                raise self._damaged(f"the tensor {name} occurs twice")
            if offset % alignment:
                raise self._damaged(f"the tensor {name} is not on a boundary of {alignment} bytes")
            tensors[name] = GgufTensor(name, shape, kind, self._file, start + offset, n_bytes)
        self._check_places(tensors)
        return GgufHeader(self._file, metadata, tensors)

    def _check_places(self, tensors: Mapping[str, GgufTensor]) -> None:
        end = 0
        for tensor in sorted(tensors.values(), key=lambda t: t.offset):
            if tensor.offset < end:
                raise self._damaged(f"the tensor {tensor.name} begins within another one")
            end = tensor.offset + tensor.n_bytes
        if end > self._size:
            raise BadCheckpoint(f"{self._file}: cut off: {self._size} bytes of {end}")

    def _tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int, int]:
        name = self._string("a tensor's name")
        n_dimensions = self._scalar("<I", f"the dimensions of {name}")
        if n_dimensions > _MOST_DIMENSIONS:
            raise self._damaged(f"the tensor {name} has {n_dimensions} dimensions")
        sizes = [self._scalar("<Q", f"the shape of {name}") for _ in range(n_dimensions)]
        number = self._scalar("<I", f"the type of {name}")
        offset = self._scalar("<Q", f"the place of {name}")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise UnsupportedModel(
                f"{self._file}: the tensor {name} is of the unknown type {number}"
            ) from None
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        shape = tuple(reversed(sizes))
        if not shape or not all(shape) or shape[-1] % per_block:
            raise self._damaged(f"the tensor {name} of type {kind.name} has the shape {list(shape)}")
        return name, shape, kind, offset, math.prod(shape) // per_block * block_bytes

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string(key)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self._damaged(f"{key} is of the unknown type {kind}")
        return self._scalar(_SCALARS[kind], key)

    def _array(self, key: str) -> list[Any]:
        kind = self._scalar("<I", key)
        count = self._scalar("<Q", key)
        if kind != _STRING and kind not in _SCALARS:
            raise self._damaged(f"{key} is an array of type {kind}")
        self._check_count(
            f"elements of {key}", count, 8 if kind == _STRING else struct.calcsize(_SCALARS[kind])
        )
        if count > _MOST_ELEMENTS:
            raise self._damaged(f"{key} has {count} elements")
        if kind == _STRING:
            return [self._string(key) for _ in range(count)]
        form = f"<{count}{_SCALARS[kind][1]}"
        return list(struct.unpack(form, self._take(struct.calcsize(form), key)))

    def _string(self, what: str) -> str:
        raw = self._take(self._scalar("<Q", what), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self._damaged(f"{what} is not valid UTF-8") from None

    def _scalar(self, form: str, what: str) -> Any:
        value = struct.unpack(form, self._take(struct.calcsize(form), what))[0]
        # 1e-6 instead of 9.999999974752427e-07: the number that the model's own config has.
        return float(str(np.float32(value))) if form == "<f" else value

    def _take(self, n_bytes: int, what: str) -> bytes:
        end = self._at + n_bytes
        if end > self._size:
            raise BadCheckpoint(
                f"{self._file}: damaged, or cut off in its header ({self._size} bytes, at {what})"
            )
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def _check_count(self, what: str, count: int, least_bytes: int) -> None:
        if count * least_bytes > self._size - self._at:
            raise BadCheckpoint(
                f"{self._file}: damaged, or cut off in its header ({count} {what} in {self._size} bytes)"
            )

    def _damaged(self, reason: str) -> BadCheckpoint:
        return BadCheckpoint(f"{self._file}: damaged: {reason}")


def _show(value: Any) -> str:
    return repr(value)[:40]
