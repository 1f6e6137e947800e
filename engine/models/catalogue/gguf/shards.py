"""Models in several GGUF files, NAME-00001-of-00003.gguf and so on: any of them stands for the whole model.

The first holds the metadata. Each says its number (`split.no`, from 0), how many files there are
(`split.count`), and how many tensors they have together (`split.tensors.count`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmux.core.errors import BadCheckpoint
from tokenmux.models.catalogue.gguf.header import GgufHeader, GgufTensor, read_header

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model as its file, or its files together, hold it. Messages name `file`, the first one."""

    file: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_model(file: Path) -> GgufModel:
    """Read the headers of `file` and of the others that make a model with it.

    Raises as `read_header`, and BadCheckpoint.
    """
    header = read_header(file)
    count = header.metadata.get("split.count", 0)
    if type(count) is not int:
        raise BadCheckpoint(f"{file}: split.count is {str(count)[:40]!r}, not a whole number")
    if count < 2:
        return GgufModel(file, header.metadata, header.tensors)
    matched = _SHARD.fullmatch(file.name)
    if matched is None or int(matched[3]) != count:
        raise BadCheckpoint(
            f"{file}: one of {count} files of a model, which must be named "
            f"NAME-00001-of-{count:05}.gguf and so on"
        )
    headers = []
    for number in range(1, count + 1):
        path = file.with_name(f"{matched[1]}-{number:05}-of-{count:05}.gguf")
        if not path.is_file():
            raise BadCheckpoint(f"{file}: one of {count} files of a model, and {path.name} is missing")
        headers.append(read_header(path))
    return _together(headers)


def _together(headers: list[GgufHeader]) -> GgufModel:
    first = headers[0]
    tensors: dict[str, GgufTensor] = {}
    for number, header in enumerate(headers):
        for key, expected in (("split.no", number), ("split.count", len(headers))):
            if (found := header.metadata.get(key)) != expected:
                raise BadCheckpoint(f"{header.file}: {key} is {found!r}, and its name says {expected}")
        if twice := sorted(tensors.keys() & header.tensors.keys()):
            raise BadCheckpoint(f"{header.file}: the tensor {twice[0]} is in another file of the model too")
        tensors.update(header.tensors)
    told = first.metadata.get("split.tensors.count")
    if told != len(tensors):
        raise BadCheckpoint(
            f"{first.file}: split.tensors.count is {told!r}, and the {len(headers)} files hold {len(tensors)}"
        )
    return GgufModel(first.file, first.metadata, tensors)
