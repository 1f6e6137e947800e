"""Totals of a made-up server, and what its exposition says of them."""

from collections.abc import Iterable, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from tests.server.sample_reports import node_status, node_use
from tokenmux.core.facts import ModelId
from tokenmux.messages.reports import NodeStatus, NodeUse
from tokenmux.server.front.api_keys import ApiKeys
from tokenmux.server.front.node_totals import NodeTotals
from tokenmux.server.front.pool_status import PoolSnapshot
from tokenmux.server.front.request_counters import RequestCounters
from tokenmux.server.front.server_totals import ServerTotals, server_totals
from tokenmux.server.front.shown_models import ShownModel
from tokenmux.server.front.usage import Usage
from tokenmux.server.observability.exposition import TextFormat, exposition_of

Samples = Mapping[tuple[str, tuple[str, ...]], float]
"""Figures by name and values of labels."""


def totals_of(
    nodes: NodeTotals,
    *models: str,
    status: NodeStatus | None = None,
    requests: RequestCounters | None = None,
    keys: ApiKeys | None = None,
) -> ServerTotals:
    """The totals of a server that serves these models."""
    told = {} if status is None else {model.model: model for model in status.models}
    shown = tuple(
        ShownModel(name, None, False, "" if name != "odd" else "it is odd", told.get(ModelId(name)), None)
        for name in models
    )
    snapshot = PoolSnapshot("1.2.3", 60.0, 4, 256, 3, status, Usage(), shown)
    return server_totals(snapshot, nodes, requests or RequestCounters(), keys or ApiKeys())


def one_node(*models: str, strangers: Iterable[str] = ()) -> tuple[NodeTotals, NodeStatus, NodeUse]:
    """What a node has counted of these models, of the tenant `team` and of strangers; and its reports."""
    nodes, status = NodeTotals(["team"]), node_status(*models)
    use = node_use(*models, tenants=["team", *strangers])
    nodes.take(status)
    nodes.take(use)
    return nodes, status, use


def families_of(totals: ServerTotals, form: TextFormat = TextFormat.PLAIN) -> list[Metric]:
    """The families, as the library's own parser reads them."""
    parse = parse_plain if form is TextFormat.PLAIN else parse_open_metrics
    return list(parse(exposition_of(totals, form).decode()))


def samples_of(totals: ServerTotals) -> Samples:
    return {
        (sample.name.removeprefix("tokenmux_"), tuple(sample.labels.values())): sample.value
        for family in families_of(totals)
        for sample in family.samples
    }
