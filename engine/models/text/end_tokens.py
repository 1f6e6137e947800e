"""Which tokens end an output, from whatever a checkpoint says about it.

Real files name end tokens as a number, a list, a string, nested lists, or beyond the vocabulary (a fine-tune
whose tokenizer has more tokens than the model has rows). The result holds only ids that the model can draw;
warnings say what was left out or guessed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmux.models.json_files import read_object

_SOURCES = ("generation_config.json", "config.json")
_DEEPEST, _MOST = 4, 256
"""Depth of nested lists, and number of ids, that are looked at: anything beyond is not a list of end
tokens."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Ids of the end tokens, each below the size of the vocabulary, and warnings for the log."""

    ids: frozenset[int]
    warnings: tuple[str, ...] = ()


def end_tokens(folder: Path, tokenizer_end: object, vocab_size: int) -> Ends:
    """The end tokens of the checkpoint in `folder`: the tokenizer's, and those of its generation config.

    If the generation config names no valid one, config.json is used. Raises BadCheckpoint for a file that is
    not a JSON object.
    """
    found = valid_ids(tokenizer_end, vocab_size, "the tokenizer")
    ids, warnings = set(found.ids), list(found.warnings)
    for name in _SOURCES:
        document = _read(folder / name)
        text = document.get("text_config")
        said = document.get("eos_token_id", text.get("eos_token_id") if isinstance(text, dict) else None)
        found = valid_ids(said, vocab_size, name)
        ids |= found.ids
        warnings += found.warnings
        if found.ids:
            break
    return Ends(frozenset(ids), tuple(warnings))


def valid_ids(said: object, vocab_size: int, source: str) -> Ends:
    """The token ids in `said`, which may be any JSON value. Warnings name it as `source`."""
    ids, warnings = set(), []
    for index, value in enumerate(_flat(said)):
        if index == _MOST:
            warnings.append(f"{source}: more than {_MOST} end tokens; the others are ignored")
            break
        token = _as_integer(value)
        if token is None:
            warnings.append(f"{source}: eos_token_id {_shown(value)} is not a token id and is ignored")
        elif not 0 <= token < vocab_size:
            warnings.append(
                f"{source}: eos_token_id {_shown(value)} is ignored: the model has token ids 0 to "
                f"{vocab_size - 1}"
            )
        else:
            if type(value) is not int:
                warnings.append(f"{source}: eos_token_id {_shown(value)} is taken for the token id {token}")
            ids.add(token)
    return Ends(frozenset(ids), tuple(warnings))


def _flat(said: object, depth: int = 0) -> Iterator[object]:
    if isinstance(said, list) and depth < _DEEPEST:
        for item in said:
            yield from _flat(item, depth + 1)
    elif said is not None:
        yield said


def _as_integer(value: object) -> int | None:
    """The integer that a value stands for: 5, 5.0 and "5" are accepted, true and "five" are not."""
    match value:
        case bool():
            return None
        case int():
            return value
        case float() if value.is_integer():
            return int(value)
        case str() if value.isascii() and value.isdigit() and len(value) < 12:
            return int(value)
        case _:
            return None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    return read_object(path) if path.exists() else {}
