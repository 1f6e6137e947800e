"""YAML with line numbers: the plain data of a file, and the line of each part."""

from dataclasses import dataclass
from typing import Any

import yaml

from tokenmux.core.errors import ConfigError

YamlPath = tuple[str | int, ...]
"""ApiKeys and indices from the top: ("models", "small", "source")."""

MAX_DEPTH = 32
MAX_VALUES = 100_000
"""Limit of a file's values once its aliases are expanded: nine lines can stand for 10^9 values, or for
endless ones."""


@dataclass(frozen=True, slots=True)
class Document:
    """Parsed data with line numbers. `lines` counts from 1; an entry of a mapping has the line of its key."""

    name: str
    data: object
    lines: dict[YamlPath, int]

    def line_of(self, place: YamlPath) -> int:
        """The line of this place, or of the nearest enclosing one that is in the file."""
        while place not in self.lines:
            if not place:
                return 1
            place = place[:-1]
        return self.lines[place]


def parse(text: str, name: str) -> Document:
    """Read YAML. Raises ConfigError with the line if it is not valid YAML, has a key twice, or never ends."""
    lines: dict[YamlPath, int] = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return Document(name, {}, lines)
            _walk(node, (), lines, name)
            return Document(name, loader.construct_document(node), lines)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise ConfigError(
            f"{name}:{line}: this is not valid YAML: {error.problem or error.context}"
        ) from error
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            f"{name}: this is not valid YAML: {error.reason}: character {error.position} is "
            f"U+{error.character:04X}"
        ) from error
    except RecursionError as error:  # the parser's own, before there are nodes to look at
        raise ConfigError(f"{name}: values lie more than {MAX_DEPTH} levels deep") from error


class _Loader(yaml.SafeLoader):
    """Errors of a value's own constructor (ValueError for the date 2026-99-99) are reported with its line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"this is read as {kind} but is not one ({error}): quote it if it is text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def _walk(node: yaml.Node, place: YamlPath, lines: dict[YamlPath, int], name: str) -> None:
    lines.setdefault(place, node.start_mark.line + 1)
    if len(place) > MAX_DEPTH or len(lines) > MAX_VALUES:
        bound = f"{MAX_DEPTH} levels deep" if len(place) > MAX_DEPTH else f"{MAX_VALUES:,} values"
        raise ConfigError(
            f"{name}:{node.start_mark.line + 1}: more than {bound}, with what aliases repeat: write fewer"
        )
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            inner = (*place, key.value if isinstance(key, yaml.ScalarNode) else str(key.value))
            if inner in lines:
                raise ConfigError(
                    f"{name}:{line}: {key.value!r} is given twice, first on line {lines[inner]}"
                )
            lines[inner] = line
            _walk(value, inner, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*place, index), lines, name)
