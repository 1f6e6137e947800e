"""Manifests of weight images: which tensors an image has, and the file that it is in.

It imports no torch, so that a server can list its models without: types of tensors are names here, and
`image.DTYPES` has what they name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tokenmux.core.errors import BadCheckpoint
from tokenmux.core.facts import Image, ImageId
from tokenmux.models.atomic_files import atomic_file

TENSOR_ALIGNMENT = 64
MANIFEST_VERSION = 1
MAX_DIMENSIONS = 16

ITEM_BYTES: Mapping[str, int] = {
    "BF16": 2,
    "BOOL": 1,
    "F16": 2,
    "F32": 4,
    "F64": 8,
    "I16": 2,
    "I32": 4,
    "I64": 8,
    "I8": 1,
    "U8": 1,
}
"""Types of tensors by their names in safetensors files, and the size of one number of each, in bytes."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of an image: `n_bytes` at `offset`, row-major, of a type named as in `ITEM_BYTES`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


def check_entry(entry: TensorEntry, n_image_bytes: int) -> None:
    """Raise ValueError unless the entry lies within an image of `n_image_bytes`, so that binding it cannot
    fail."""
    numbers = (*entry.shape, entry.offset, entry.n_bytes, n_image_bytes)
    if type(entry.name) is not str or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(
            f"tensor {entry.name!r}: names are strings, shapes and offsets whole numbers, not negative"
        )
    if len(entry.shape) > MAX_DIMENSIONS:
        raise ValueError(f"tensor {entry.name} has {len(entry.shape)} dimensions")
    if type(entry.dtype) is not str or entry.dtype not in ITEM_BYTES:
        raise ValueError(f"tensor {entry.name} is of type {entry.dtype!r}")
    size = prod(entry.shape) * ITEM_BYTES[entry.dtype]
    if entry.n_bytes != size or entry.offset + size > n_image_bytes:
        raise ValueError(
            f"tensor {entry.name} of {entry.dtype} {entry.shape} has {entry.n_bytes} bytes at {entry.offset} "
            f"of {n_image_bytes}, which cannot be"
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an image holds and where it is: `n_bytes` at `data_offset` of `file`, with this SHA-256 in hex.

    `dtype` names the type in which the model computes. `source` is the checkpoint's name in messages.
    """

    source: str
    dtype: str
    file: Path
    data_offset: int
    n_bytes: int
    sha256: str
    tensors: Mapping[str, TensorEntry]

    @property
    def item_bytes(self) -> int:
        """The size of one number in the type in which the model computes."""
        return ITEM_BYTES[self.dtype]

    def image_of(self, name: str) -> Image:
        """The image as the model `name` has it. The checksum is part of the id: registering other weights
        under the same name makes another image."""
        return Image(ImageId(f"{name}@{self.sha256[:12]}"), self.n_bytes)

    def save(self, path: Path) -> None:
        """Write the manifest as JSON, atomically. A file in the manifest's own folder is named relative to
        it."""
        file = self.file.name if self.file.parent == path.parent else str(self.file)
        tensors = [[t.name, t.dtype, list(t.shape), t.offset, t.n_bytes] for t in self.tensors.values()]
        document = {
            "version": MANIFEST_VERSION,
            "source": self.source,
            "dtype": self.dtype,
            "file": file,
            "data_offset": self.data_offset,
            "n_bytes": self.n_bytes,
            "sha256": self.sha256,
            "tensors": tensors,
        }
        with atomic_file(path) as out:
            out.write(json.dumps(document, indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Read a manifest. Raises BadCheckpoint if it is missing, damaged or of another version."""
        try:
            document: dict[str, Any] = json.loads(path.read_bytes())
            if document["version"] != MANIFEST_VERSION:
                raise BadCheckpoint(
                    f"{path}: manifest version {document['version']}, not {MANIFEST_VERSION}; "
                    "register the model again"
                )
            entries = [
                TensorEntry(n, d, tuple(shape), o, size) for n, d, shape, o, size in document["tensors"]
            ]
            for entry in entries:
                check_entry(entry, document["n_bytes"])
            return cls(
                source=document["source"],
                dtype=_known_type(document["dtype"]),
                file=path.parent / document["file"],
                data_offset=document["data_offset"],
                n_bytes=document["n_bytes"],
                sha256=document["sha256"],
                tensors={entry.name: entry for entry in entries},
            )
        except FileNotFoundError:
            raise BadCheckpoint(f"{path}: the manifest is missing") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadCheckpoint(
                f"{path}: the manifest is damaged ({error!r}); register the model again"
            ) from None


def _known_type(name: str) -> str:
    if name not in ITEM_BYTES:
        raise ValueError(f"weights of type {name!r}")
    return name
