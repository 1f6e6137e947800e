"""Finds JSON schemas that only a document without end could meet, such as an object that must contain
another one of its kind."""

from collections.abc import Iterator
from typing import Any


def is_endless(schema: object) -> bool:
    """True if the required parts of `schema` lead back to it. Parts that are not understood count as
    finite.

    >>> is_endless({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]})
    True
    >>> is_endless({"type": "object", "properties": {"next": {"$ref": "#"}}})
    False
    """
    search = _Search(schema)
    return not search.is_finite(schema)


class _Search:
    """Follows references by their text. What is being looked at already counts as endless: the smallest
    document does not contain itself."""

    def __init__(self, root: object) -> None:
        self._root = root
        self._open: set[str] = set()
        self._finite: set[str] = set()

    def is_finite(self, schema: object) -> bool:
        if not isinstance(schema, dict):
            return True
        if "enum" in schema or "const" in schema:
            return True
        reference = schema.get("$ref")
        if isinstance(reference, str) and not self._reference_is_finite(reference):
            return False
        if not all(map(self.is_finite, _list(schema.get("allOf")))):
            return False
        for name in ("anyOf", "oneOf"):
            options = _list(schema.get(name))
            if options and not any(map(self.is_finite, options)):
                return False
        kind = schema.get("type")
        if isinstance(kind, list) and any(one not in ("object", "array") for one in kind):
            return True
        return all(map(self.is_finite, _required_parts(schema)))

    def _reference_is_finite(self, reference: str) -> bool:
        if reference in self._finite:
            return True
        if reference in self._open:
            return False
        self._open.add(reference)
        is_finite = self.is_finite(self._at(reference))
        self._open.discard(reference)
        if is_finite:
            self._finite.add(reference)
        return is_finite

    def _at(self, reference: str) -> object:
        """What a reference within the document points to; None for any other, which the library judges."""
        if not reference.startswith("#"):
            return None
        place: Any = self._root
        for name in reference[1:].split("/")[1:]:
            key = name.replace("~1", "/").replace("~0", "~")
            if isinstance(place, dict):
                place = place.get(key)
            elif isinstance(place, list) and key.isdigit() and int(key) < len(place):
                place = place[int(key)]
            else:
                return None
        return place


def _required_parts(schema: dict[str, Any]) -> Iterator[object]:
    """The schemas of values that each object or array has."""
    properties = schema.get("properties")
    if schema.get("type", "object") == "object" and isinstance(properties, dict):
        yield from (properties.get(name) for name in _list(schema.get("required")) if isinstance(name, str))
    least = schema.get("minItems")
    if schema.get("type") == "array" and isinstance(least, int) and least > 0:
        first = _list(schema.get("prefixItems"))[:least]
        yield from first
        if len(first) < least:
            yield schema.get("items")


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
