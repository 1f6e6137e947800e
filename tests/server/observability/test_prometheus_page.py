"""What operators are given beside the figures speaks of families that there are: the page, the dashboard for
Grafana, the configuration of Prometheus."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokenmux.server.observability.families import ALL_FAMILIES, FAMILY_GROUPS
from tokenmux.server.observability.family import Family, MetricKind

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/prometheus.md"
DASHBOARD = json.loads((ROOT / "examples/grafana/tokenmux.json").read_text())
LABELS: dict[str, set[str]] = {
    series: set(family.labels) | ({"le"} if series.endswith("_bucket") else set())
    for family in ALL_FAMILIES
    for series in (
        [f"{family.full_name}_{part}" for part in ("bucket", "sum", "count")]
        if family.kind is MetricKind.HISTOGRAM
        else [family.full_name]
    )
}
"""The labels of every series."""


def row_of(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.full_name}` | {family.kind} | {labels} | {family.help} |"


@pytest.mark.parametrize("title", FAMILY_GROUPS)
def test_the_page_lists_every_family(title: str) -> None:
    lines = [f"### {title}", "", "| name | type | labels | what it is |", "| --- | --- | --- | --- |"]
    table = "\n".join([*lines, *map(row_of, FAMILY_GROUPS[title])])
    assert f"{table}\n\n" in PAGE.read_text() + "\n", f"docs/prometheus.md should have:\n\n{table}\n"


def test_the_page_names_no_family_that_there_is_not() -> None:
    named = set(re.findall(r"\btokenmux_\w+", PAGE.read_text()))
    assert named - LABELS.keys() <= {family.full_name for family in ALL_FAMILIES}
    assert len(named) >= len(ALL_FAMILIES)


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def unknown_labels(expression: str) -> set[str]:
    """Labels that the expression speaks of, and none of its series has."""
    series = re.findall(r"\btokenmux_\w+", expression)
    asked = re.findall(r"\bby \(([^)]*)\)", expression) + re.findall(r"\{([^}]*)\}", expression)
    names = {re.split(r"[=!~]", part.strip())[0] for labels in asked for part in labels.split(",")}
    return names - set().union(*(LABELS[one] for one in series))


@pytest.mark.parametrize("expression", expressions())
def test_the_dashboard_asks_for_series_that_there_are(expression: str) -> None:
    series = re.findall(r"\btokenmux_\w+", expression)
    assert series
    assert set(series) <= LABELS.keys()
    assert unknown_labels(expression) == set()
    for name in series:
        is_rated = re.search(rf"\b(rate|increase)\({name}\b", expression) is not None
        assert is_rated == name.endswith(("_total", "_bucket", "_sum", "_count")), name


def test_a_wrong_dashboard_would_be_found() -> None:
    assert unknown_labels('sum by (device) (rate(tokenmux_swaps_total{model="a"}[5m]))') == {
        "device",
        "model",
    }


def test_the_dashboard_is_whole() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len({panel["id"] for panel in panels}) == len(panels)
    legends = [t["legendFormat"] for panel in panels for t in panel["targets"]]
    known = set().union(*LABELS.values())
    assert {label for legend in legends for label in re.findall(r"\{\{(\w+)\}\}", legend)} <= known
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "model"}
    query = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables["model"]["query"]["query"])
    assert query is not None
    series, label = query.groups()
    assert label in LABELS[series]


def test_the_configuration_of_prometheus_can_be_read() -> None:
    (job,) = yaml.safe_load((ROOT / "examples/prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:8000"]}]
