"""The table of counters: what each of them declares of itself, and everything that is derived from that.

A counter is declared once, where it is counted (`tokenmux.scheduler.metrics.counters`):

    n_steps: int = counted(Unit.STEPS, "Forward passes.")

From the declarations follow what a node reports (`Table.row`) and what the API shows (`Table.named`); a
field of the same name in the .proto file makes it visible. `CONTRIBUTING.md` has the recipe.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import Enum, StrEnum
from operator import attrgetter
from typing import Any

from tokenmux.scheduler.metrics.histogram import Durations, Histogram

Row = tuple[int | float | Durations, ...]
"""The values of one aggregate's counters at a moment, in the order of its table. A row and not a mapping: the
status of 1,000 models goes to the front five times a second, and names are as long as numbers."""


class Unit(StrEnum):
    """What a counter counts in."""

    BYTES = "bytes"
    REQUESTS = "requests"
    SECONDS = "seconds"
    SHARE = "share"
    STEPS = "steps"
    SWAPS = "swaps"
    TIMES = "times"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Counter:
    """One row of the table. `name` is the field's in the API."""

    name: str
    unit: Unit
    help: str


@dataclass(frozen=True, slots=True)
class _Declared:
    unit: Unit
    help: str
    name: str = ""
    """The name of each counter, with `{}` for the member of `by`."""
    by: type[Enum] | None = None
    path: str = ""
    """Where to read it, unless it is an attribute of its own."""
    is_histogram: bool = False


def counted(unit: Unit, help: str) -> Any:
    """Declare a counter as a dataclass field that begins at 0."""
    start = 0.0 if unit is Unit.SECONDS else 0
    return field(default=start, metadata={"counter": _Declared(unit, help)})


def counted_by(kinds: type[Enum], name: str, unit: Unit, help: str) -> Any:
    """Declare one counter for each member of `kinds`, kept in a dict. `name` has `{}` for the member's name
    in small letters."""
    start = 0.0 if unit is Unit.SECONDS else 0
    return field(
        default_factory=lambda: dict.fromkeys(kinds, start),
        metadata={"counter": _Declared(unit, help, name, kinds)},
    )


def histogram(help: str) -> Any:
    """Declare a histogram of durations in seconds."""
    declared = _Declared(Unit.SECONDS, help, is_histogram=True)
    return field(default_factory=Histogram, metadata={"counter": declared})


class Derived(property):
    """A property that is reported like a counter."""

    def __init__(self, read: Callable[[Any], int | float], declared: "_Declared") -> None:
        super().__init__(read, doc=declared.help)
        self.declared = declared


def derived(unit: Unit, help: str) -> Callable[[Callable[[Any], int | float]], Derived]:
    """Declare a property that is reported like a counter."""
    return lambda read: Derived(read, _Declared(unit, help))


def taken_from(path: str, unit: Unit, help: str) -> Derived:
    """Declare a property that is a counter of a part, such as "service.n_tokens"."""
    return Derived(attrgetter(path), _Declared(unit, help, path=path))


class Table:
    """The counters that a class declares: single ones, then those by kind, then histograms."""

    def __init__(self, kind: type) -> None:
        declared: dict[str, _Declared] = {
            item.name: item.metadata["counter"] for item in fields(kind) if "counter" in item.metadata
        }
        properties = {name: value for name, value in vars(kind).items() if isinstance(value, Derived)}
        declared |= {name: value.declared for name, value in properties.items()}
        self._histograms = [name for name, found in declared.items() if found.is_histogram]
        by_kind = {name: found.by for name, found in declared.items() if found.by is not None}
        self._by_kind = list(by_kind)
        single = [name for name in declared if name not in by_kind and name not in self._histograms]
        # One call in C for all of them: a status has a row for each model.
        self._single: Callable[[object], Row] = attrgetter(*(declared[name].path or name for name in single))
        self.counters = [
            *(Counter(name, declared[name].unit, declared[name].help) for name in single),
            *(
                Counter(found.name.format(member.name.lower()), found.unit, found.help)
                for found, kinds in ((declared[name], kinds) for name, kinds in by_kind.items())
                for member in kinds
            ),
            *(Counter(name, declared[name].unit, declared[name].help) for name in self._histograms),
        ]
        self.names = tuple(counter.name for counter in self.counters)

    def single(self, counters: object) -> Row:
        """The values of the single counters: cheap enough to look for what moved. No histogram moves without
        one of them."""
        return self._single(counters)

    def row(self, counters: object) -> Row:
        """The values at this moment."""
        row = self._single(counters)
        for name in self._by_kind:
            row += (*getattr(counters, name).values(),)
        for name in self._histograms:
            row += (getattr(counters, name).durations(),)
        return row

    def named(self, row: Row) -> dict[str, Any]:
        """The values of a row by the names of their counters."""
        return dict(zip(self.names, row, strict=True))
