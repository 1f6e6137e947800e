"""The figures as text for Prometheus, in the two formats that its servers read.

Made in a thread from what the front holds: nothing is asked of a node. All who ask within a moment get the
same text, so that any number of them costs a bounded share of the time.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

import prometheus_client.exposition as plain
import prometheus_client.openmetrics.exposition as openmetrics
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from tokenmux.server.front.server_totals import ServerTotals
from tokenmux.server.observability.families import ALL_FAMILIES
from tokenmux.server.observability.figures import figures_of

TEXT_FRESH_S = 1.0
"""One text serves all who ask within this time. A node's own reports of usage are as old."""
MAKING_SHARE = 0.05
"""Making texts takes at most this share of a processor: with thousands of models they are less fresh."""


class TextFormat(Enum):
    """A format, by its content type."""

    PLAIN = plain.CONTENT_TYPE_PLAIN_0_0_4
    OPEN_METRICS = openmetrics.CONTENT_TYPE_LATEST


def format_for(accept: str) -> TextFormat:
    """The format for an `accept` header: OpenMetrics if it is asked for, and plain text is not preferred."""
    preferences = dict(map(_preference, accept.split(",")))
    wanted = preferences.get("application/openmetrics-text", 0.0)
    plain_wanted = preferences.get("text/plain", 0.0)
    return TextFormat.OPEN_METRICS if wanted > 0 and wanted >= plain_wanted else TextFormat.PLAIN


def exposition_of(totals: ServerTotals, form: TextFormat) -> bytes:
    """All families, and those of the front's own process."""
    collected = _Collected(totals)
    if form is TextFormat.OPEN_METRICS:
        text: bytes = openmetrics.generate_latest(collected)  # type: ignore[no-untyped-call]
        return text
    return plain.generate_latest(collected)


def timed_exposition(totals: ServerTotals, form: TextFormat) -> tuple[bytes, float]:
    """The text, and the seconds of a processor that it took."""
    began_s = time.thread_time()
    return exposition_of(totals, form), time.thread_time() - began_s


@dataclass(slots=True)
class _Made:
    text: "asyncio.Task[bytes]"
    until_s: float = 0.0


class Exposition:
    """Makes the text when it is asked for."""

    def __init__(
        self, totals: Callable[[], ServerTotals], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`totals` are taken on the event loop."""
        self._totals = totals
        self._clock = clock
        self._made: dict[TextFormat, _Made] = {}

    async def text(self, form: TextFormat) -> bytes:
        """The text, at most `TEXT_FRESH_S` old, or older if it takes long to make."""
        made = self._made.get(form)
        if made is None or (made.text.done() and self._clock() >= made.until_s):
            made = self._made[form] = _Made(asyncio.ensure_future(self._make(form)))
        return await asyncio.shield(made.text)

    async def _make(self, form: TextFormat) -> bytes:
        began_s = self._clock()
        text, took_s = await asyncio.to_thread(timed_exposition, self._totals(), form)
        self._made[form].until_s = began_s + max(TEXT_FRESH_S, took_s / MAKING_SHARE)
        return text


class _Collected(Collector):
    """Everything that is exposed, for an encoder of the library."""

    def __init__(self, totals: ServerTotals) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        figures = figures_of(self._totals)
        for family in ALL_FAMILIES:
            yield family.metric(figures)
        yield from ProcessCollector(registry=None).collect()


def _preference(item: str) -> tuple[str, float]:
    """A media type, and how much it is wanted."""
    kind, *parameters = (part.strip().lower() for part in item.split(";"))
    quality = next((value for name, _, value in (p.partition("=") for p in parameters) if name == "q"), "1")
    try:
        return kind, float(quality)
    except ValueError:
        return kind, 0.0
