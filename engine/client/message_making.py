"""Messages of values that a caller gave: an error names the argument that cannot be sent."""

import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tokenmux.client.errors import WrongArgument

MessageT = TypeVar("MessageT")


def made(kind: Callable[..., MessageT], **values: Any) -> MessageT:
    """A message of these values. If one of them cannot be sent, the error names it."""
    try:
        return kind(**values)
    except (TypeError, ValueError):
        for name, value in values.items():
            try:
                kind(**{name: value})
            except TypeError as error:
                raise TypeError(f"{name}: {error}") from error
            except ValueError as error:  # includes UnicodeEncodeError
                raise WrongArgument(f"{name}: {reprlib.repr(value)} cannot be sent: {error}") from error
        raise


def json_text(name: str, value: Mapping[str, object]) -> str:
    """Raise WrongArgument for what JSON cannot hold."""
    try:
        return json.dumps(dict(value), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise WrongArgument(f"{name}: {reprlib.repr(value)} cannot be sent: {error}") from error


def text_list(name: str, texts: Sequence[str]) -> Sequence[str]:
    """Raise TypeError for a single text, whose letters would be sent."""
    if isinstance(texts, str):
        raise TypeError(f"{name}: {reprlib.repr(texts)} is a single text: put it in a list")
    return texts
