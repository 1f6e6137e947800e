"""YAML with line numbers: the plain data of a file, and the line on which each part of it stands."""

from dataclasses import dataclass

import yaml

from tokenmux.engine.core.errors import ConfigError

Place = tuple[str | int, ...]
"""Keys and indices from the top: ("models", "small", "source")."""


@dataclass(frozen=True, slots=True)
class Document:
    """`lines` counts from 1, and has the place of a mapping's entry where its key stands."""

    name: str
    data: object
    lines: dict[Place, int]

    def line_of(self, place: Place) -> int:
        """The line of this place, or of the nearest one around it that is written down."""
        while place not in self.lines:
            if not place:
                return 1
            place = place[:-1]
        return self.lines[place]


def parse(text: str, name: str) -> Document:
    """Read YAML. Raises ConfigError with the line where it is no YAML, or names a key twice."""
    loader = yaml.SafeLoader(text)
    lines: dict[Place, int] = {}
    try:
        node = loader.get_single_node()
        if node is None:
            return Document(name, {}, lines)
        _walk(node, (), lines, name)
        return Document(name, loader.construct_document(node), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise ConfigError(
            f"{name}:{line}: this is no valid YAML: {error.problem or error.context}"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: this is no valid YAML: {error}") from error
    finally:
        loader.dispose()


def _walk(node: yaml.Node, place: Place, lines: dict[Place, int], name: str) -> None:
    lines.setdefault(place, node.start_mark.line + 1)
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
