"""A span of time in a trace."""

from collections.abc import Mapping
from typing import NamedTuple


class Span(NamedTuple):
    """Something that took time: an operation on a channel (`track` is the channel's name in lower case) or a
    `request`."""

    instance: int
    track: str
    name: str
    start_s: float
    end_s: float
    details: Mapping[str, str | int | float]
