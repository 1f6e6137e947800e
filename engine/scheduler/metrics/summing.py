"""Adds counters of several instances: those of a model, or a tenant, that was served on more than one."""

from collections.abc import Sequence
from dataclasses import fields
from operator import add
from typing import TypeVar

from tokenmux.scheduler.metrics.histogram import Histogram

Counters = TypeVar("Counters")

_LATEST = "last_asked_s"
"""The one field that is a time: the later one counts."""


def summed(parts: Sequence[Counters]) -> Counters:
    """The sum of counters of one class; itself if there is only one."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    values = {}
    for item in fields(first):  # type: ignore[arg-type]
        of_all = [getattr(part, item.name) for part in parts]
        values[item.name] = max(of_all) if item.name == _LATEST else _sum(of_all)
    return type(first)(**values)


def _sum(values: Sequence[object]) -> object:
    first = values[0]
    match first:
        case Histogram():
            total = Histogram()
            for value in values:
                assert isinstance(value, Histogram)
                total.counts = list(map(add, total.counts, value.counts))
                total.total_s += value.total_s
            return total
        case dict():
            return {key: sum(value[key] for value in values) for key in first}  # type: ignore[index]
        case int() | float():
            return sum(values)  # type: ignore[arg-type]
        case _:
            return summed(values)
