"""Metadata with a ledger: each key of the architecture or the tokenizer is used, or refused by name.

llama.cpp reads the namespaces `general`, `tokenizer`, `split` and that of the architecture; others are notes
of the file's author. A key in these namespaces that is not known here may change a result, so it is never
ignored.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from tokenmux.core.errors import BadCheckpoint, UnsupportedModel

_LARGEST = 1 << 31


class Keys:
    """The keys `<prefix>.*` of a file. Getters note what was taken; `refuse_rest` names what was not.

    Getters raise BadCheckpoint if a key is missing (unless a default is given) or has a wrong type.
    """

    def __init__(self, file: Path, metadata: Mapping[str, Any], prefix: str) -> None:
        self.file = file
        self._n_layers = metadata.get(f"{prefix}.block_count")
        self._prefix = prefix
        self._values = {
            key.removeprefix(f"{prefix}."): value
            for key, value in metadata.items()
            if key.startswith(f"{prefix}.")
        }
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def integer(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number. A list of equal numbers (one per layer) counts as one."""
        value = self._take(name, default)
        if isinstance(value, list) and value and self._n_layers is not None:
            if len(value) != self._n_layers:
                self.bad(name, f"has {len(value)} elements, and there are {self._n_layers} layers")
            if any(element != value[0] for element in value):
                self.unsupported(name, "differs from layer to layer")
            value = value[0]
        if type(value) is not int or not least <= value < _LARGEST:
            self.bad(name, f"is {_show(value)}, not a whole number from {least} on")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._take(name, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            self.bad(name, f"is {_show(value)}, not a finite number above 0")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        value = self._take(name, default)
        if type(value) is not bool:
            self.bad(name, f"is {_show(value)}, not true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._take(name, default)
        if type(value) is not str:
            self.bad(name, f"is {_show(value)}, not text")
        return value

    def several(self, name: str, kind: type, length: int | None = None) -> list[Any]:
        """A list of `length` values of one type."""
        value = self._take(name, None)
        if not isinstance(value, list) or any(type(element) is not kind for element in value):
            self.bad(name, f"is not a list of {kind.__name__}")
        if length is not None and len(value) != length:
            self.bad(name, f"has {len(value)} elements, and there are {length}")
        return list(value)

    def raw(self, name: str) -> Any:
        """Any value, or None if the key is missing."""
        self._taken.add(name)
        return self._values.get(name)

    def expect(self, name: str, *allowed: object) -> None:
        """Take a key that may be absent or have one of the `allowed` values; others would change the
        result."""
        if name in self._values and (value := self._take(name, None)) not in allowed:
            self.unsupported(name, f"is {_show(value)}")

    def ignore(self, *names: str) -> None:
        """Take keys that change no result."""
        self._taken.update(names)

    def ignore_below(self, *starts: str) -> None:
        """Take all keys with these prefixes: they change no result."""
        self._taken.update(name for name in self._values if name.startswith(starts))

    def bad(self, name: str, reason: str) -> NoReturn:
        raise BadCheckpoint(f"{self.file}: {self._prefix}.{name} {reason}")

    def unsupported(self, name: str, reason: str) -> NoReturn:
        raise UnsupportedModel(f"{self.file}: {self._prefix}.{name} {reason}, which is not supported")

    def refuse_rest(self) -> None:
        """Raise UnsupportedModel if there are keys that were not taken."""
        if rest := sorted(self._values.keys() - self._taken):
            raise UnsupportedModel(
                f"{self.file}: {self._prefix}.{rest[0]} is not known here and may change what the model says"
            )

    def _take(self, name: str, default: object) -> Any:
        self._taken.add(name)
        value = self._values.get(name, default)
        if value is None:
            raise BadCheckpoint(f"{self.file}: {self._prefix}.{name} is missing")
        return value


def _show(value: object) -> str:
    return repr(value)[:40]
