"""Reads `/metrics` of a server as Prometheus does."""

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

Figures = dict[tuple[str, ...], float]
"""By name and values of labels, in the order of the labels' names."""


def scrape(url: str) -> Figures:
    """The figures at this moment, or a second ago."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        (
            sample.name.removeprefix("tokenmux_"),
            *(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in families
        for sample in family.samples
    }
