"""What was counted since the server began, at a moment, for those who compare moments: Prometheus."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tokenmux.core.errors import ErrorCode
from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.server.front.api_keys import ApiKeys
from tokenmux.server.front.lasting_rows import LastingRows
from tokenmux.server.front.node_totals import NodeTotals
from tokenmux.server.front.pool_status import PoolSnapshot
from tokenmux.server.front.request_counters import RequestCounters, RequestFigures


@dataclass(frozen=True, slots=True)
class ServerTotals:
    """The present status, and what all nodes and the front have counted. Nothing in it changes: any thread
    may read it. The rows are those of `tokenmux.server.front.node_totals`."""

    status: PoolSnapshot
    models: LastingRows[ModelId]
    services: LastingRows[ModelId]
    tenants: LastingRows[str]
    devices: LastingRows[InstanceId]
    deaths: LastingRows[InstanceId]
    work: LastingRows[str]
    requests: Mapping[ModelId, RequestFigures]
    refused: Mapping[ErrorCode, int]


def server_totals(
    status: PoolSnapshot, nodes: NodeTotals, requests: RequestCounters, keys: ApiKeys
) -> ServerTotals:
    """Take the totals of this moment."""
    return ServerTotals(
        status=status,
        models=nodes.models.copy(),
        services=nodes.services.copy(),
        tenants=nodes.tenants.copy(),
        devices=nodes.devices.copy(),
        deaths=nodes.deaths.copy(),
        work=nodes.work.copy(),
        requests=requests.models(),
        refused=Counter(requests.refused()) + keys.refused,
    )
