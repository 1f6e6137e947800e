"""A span of time, for traces."""

from collections.abc import Mapping
from typing import NamedTuple


class Span(NamedTuple):
    """Something that lasted: an operation on a channel (`track` is its name in small letters) or a
    `request`."""

    instance: int
    track: str
    name: str
    start_s: float
    end_s: float
    details: Mapping[str, str | int | float]
