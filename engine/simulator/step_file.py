"""Step times of one's own for a plan, from a CSV file: `tokenmux plan --steps FILE`.

    architecture,prefill_ms,prefill_us,pair_ns,decode_ms,context_us,row_us
    qwen2.5-7b,2.1,20,0,5.2,0.017,50
    *,3,40,0,10,0.1,80

The first column names a model of the plan, an architecture, or with `*` all others. What the numbers mean is
in `tokenmux.simulator.profiles`: a step that prefills T tokens and decodes B rows over C tokens of context
takes `max(decode_ms, prefill_ms + prefill_us T + pair_ns S) + row_us B + context_us C`, where S is the sum of
squared prompt lengths, and never less than the data sheet allows.
"""

import csv
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from tokenmux.core.errors import ConfigError
from tokenmux.core.file_faults import reading_fault
from tokenmux.simulator.profiles import StepFit

ALL_OTHERS = "*"
_MAX_BYTES = 1_000_000
_BOUNDS = {
    "prefill_ms": (0.0, 60_000.0),
    "prefill_us": (0.0, 1e6),
    "pair_ns": (-100.0, 1e6),
    "decode_ms": (0.0, 60_000.0),
    "context_us": (0.0, 1e6),
    "row_us": (0.0, 1e6),
}
"""Columns, and what is believed of a device. No step takes a minute."""

StepFits = tuple[tuple[str, StepFit], ...]
"""Fits by the name of a model or architecture."""


def read_steps(path: Path) -> StepFits:
    """The step times in a file. Raises ConfigError, with the line and the field, for what cannot be right."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ConfigError(f"step times {path}: longer than {_MAX_BYTES:,} characters")
        rows = list(csv.DictReader(text.splitlines(), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"step times {path}: cannot be read: {reading_fault(error)}") from error
    if not rows:
        raise ConfigError(f"step times {path}: no rows; the first line is {','.join(_columns())}")
    found: dict[str, StepFit] = {}
    for number, row in enumerate(rows, start=2):
        where = f"step times {path}, line {number}"
        name = _name(row, where)
        if name in found:
            raise ConfigError(f"{where}: {name} has a row already")
        found[name] = StepFit(**{column: _number(row[column], column, where) for column in _BOUNDS})
    return tuple(found.items())


def fit_for(fits: StepFits, model: str, architecture: str) -> StepFit | None:
    """The step times of a model, under its own name, its architecture's or `*`."""
    by_name: Mapping[str, StepFit] = dict(fits)
    return by_name.get(model) or by_name.get(architecture) or by_name.get(ALL_OTHERS)


def _columns() -> list[str]:
    return ["architecture", *_BOUNDS]


def _name(row: Mapping[str | None, object], where: str) -> str:
    if sorted(map(str, row)) != sorted(_columns()) or None in row.values():
        raise ConfigError(f"{where}: the columns must be {','.join(_columns())}")
    name = str(row["architecture"]).strip()
    if not name or len(name) > 200:
        raise ConfigError(f"{where}: architecture must be a name, or {ALL_OTHERS} for all others")
    return name


def _number(text: object, column: str, where: str) -> float:
    low, high = _BOUNDS[column]
    try:
        value = float(str(text))
    except ValueError:
        raise ConfigError(f"{where}: {column} is {text!r}, and not a number") from None
    if not isfinite(value) or not low <= value <= high:
        raise ConfigError(f"{where}: {column} is {text}, and must lie between {low:g} and {high:g}")
    return value
