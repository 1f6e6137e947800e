"""How requests ended, and how long they took, by model: what no node knows, since a request may outlive
several of them.

Counted once for each request, when its client's side ends. A model that is removed and registered again goes
on from its counts.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from tokenmux.core.errors import DeadlineExceeded, Ended, ErrorCode, TokenmuxError
from tokenmux.core.facts import ModelId
from tokenmux.core.request import FinishReason
from tokenmux.scheduler.metrics.histogram import Durations, Histogram
from tokenmux.server.front.generation import FinishInfo


class RequestEnd(Enum):
    """How a request ended for its client."""

    STOP = "stop"
    """With a stop token or string."""
    LENGTH = "length"
    ABORT = "abort"
    """Its client left, did not read, or cancelled it."""
    EXPIRED = "expired"
    """Its client's time was over."""
    ERROR = "error"


class RequestFigures(NamedTuple):
    """The figures of a model's requests at a moment. The histograms have those that completed."""

    ends: dict[RequestEnd, int]
    whole: Durations
    """From arrival to the last token."""
    queued: Durations
    """From arrival to the first step."""
    loading: Durations
    """Waiting while the model's weights were on their way."""


@dataclass(slots=True, eq=False)
class _Counts:
    ends: dict[RequestEnd, int] = field(default_factory=lambda: dict.fromkeys(RequestEnd, 0))
    whole: Histogram = field(default_factory=Histogram)
    queued: Histogram = field(default_factory=Histogram)
    loading: Histogram = field(default_factory=Histogram)

    def figures(self) -> RequestFigures:
        return RequestFigures(
            self.ends.copy(), self.whole.durations(), self.queued.durations(), self.loading.durations()
        )


NO_REQUESTS = _Counts().figures()


class RequestCounters:
    """Counts since the server began."""

    def __init__(self) -> None:
        self._models: dict[ModelId, _Counts] = {}
        self._refused: Counter[ErrorCode] = Counter()

    def ended(self, model: ModelId, end: FinishInfo | TokenmuxError) -> None:
        """A request has ended for its client, successfully or not."""
        counts = self._models.get(model)
        if counts is None:
            counts = self._models[model] = _Counts()
        counts.ends[_kind_of(end)] += 1
        if isinstance(end, FinishInfo):
            counts.whole.add(end.total_s)
            counts.queued.add(end.queue_s)
            counts.loading.add(end.loading_s)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Count the error that this raises as a call that was refused."""
        try:
            yield
        except TokenmuxError as error:
            self._refused[error.code] += 1
            raise

    def models(self) -> dict[ModelId, RequestFigures]:
        """The figures of every model that had requests."""
        return {model: counts.figures() for model, counts in self._models.items()}

    def refused(self) -> dict[ErrorCode, int]:
        """Calls that were refused, by the error that they got."""
        return dict(self._refused)


def _kind_of(end: FinishInfo | TokenmuxError) -> RequestEnd:
    match end:
        case FinishInfo(reason=FinishReason.STOP):
            return RequestEnd.STOP
        case FinishInfo():
            return RequestEnd.LENGTH
        case Ended():
            return RequestEnd.ABORT
        case DeadlineExceeded():
            return RequestEnd.EXPIRED
        case _:
            return RequestEnd.ERROR
