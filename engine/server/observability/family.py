"""What a family of metrics is: a name, a kind, labels, and where its figures come from."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from tokenmux.scheduler.metrics.counter_table import Table
from tokenmux.scheduler.metrics.histogram import BOUNDS_S, Durations
from tokenmux.server.observability.figures import Figures

PREFIX = "tokenmux_"

SHORTEST_S = 0.001
"""The smallest bound of histograms, as in vLLM: 30 buckets up to 630 s, five to a factor of ten."""


class MetricKind(StrEnum):
    """The types of Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


Sample = tuple[tuple[str, ...], float | Durations]
"""The values of the labels, and the figure."""


@dataclass(frozen=True, slots=True)
class Family:
    """One family. `name` has no prefix; that of a counter ends in `_total`."""

    name: str
    kind: MetricKind
    labels: tuple[str, ...]
    help: str
    read: Callable[[Figures], Iterable[Sample]]

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    def metric(self, figures: Figures) -> Metric:
        """The family with its figures. A histogram without any duration is left out: most models of a
        catalogue are seldom used, and it has some thirty series."""
        match self.kind:
            case MetricKind.COUNTER:
                counter = CounterMetricFamily(self.full_name, self.help, labels=self.labels)
                for labels, value in self.read(figures):
                    counter.add_metric(labels, _number(value))
                return counter
            case MetricKind.GAUGE:
                gauge = GaugeMetricFamily(self.full_name, self.help, labels=self.labels)
                for labels, value in self.read(figures):
                    gauge.add_metric(labels, _number(value))
                return gauge
            case MetricKind.HISTOGRAM:
                family = HistogramMetricFamily(self.full_name, self.help, labels=self.labels)
                for labels, value in self.read(figures):
                    assert isinstance(value, Durations)
                    if any(value.counts):
                        family.add_metric(labels, list(_buckets(value)), value.total_s)
                return family


def help_of(table: Table, counter: str) -> str:
    """What a counter of the table says of itself."""
    return next(found.help for found in table.counters if found.name == counter)


def _buckets(durations: Durations) -> Iterator[tuple[str, float]]:
    """The number of durations up to each bound."""
    up_to = list(accumulate(durations.counts))
    for bound_s, n in zip(BOUNDS_S, up_to, strict=False):
        if bound_s >= SHORTEST_S:
            yield str(bound_s), n
    yield "+Inf", up_to[-1]


def _number(value: float | Durations) -> float:
    assert not isinstance(value, Durations)
    return value
