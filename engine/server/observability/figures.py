"""The figures of a server at a moment, by name, as the table of families reads them.

Made off the event loop: everything is summed and named here.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tokenmux.core.errors import ErrorCode
from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.messages.reports import DeviceStatus, ModelStatus, NodeStatus
from tokenmux.scheduler.metrics.counter_table import Row, Table
from tokenmux.scheduler.metrics.counters import (
    INSTANCE_TABLE,
    MODEL_TABLE,
    POOL,
    SERVICE_TABLE,
    ModelCounters,
    ServiceCounters,
)
from tokenmux.server.front.pool_status import PoolSnapshot
from tokenmux.server.front.request_counters import NO_REQUESTS, RequestFigures
from tokenmux.server.front.server_totals import ServerTotals

_Key = TypeVar("_Key", bound=Hashable)

Named = Mapping[str, Any]
"""The values of a row by the names of their counters."""


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model that is served, or refused. `status` is None while no node has reported on it."""

    name: str
    is_refused: bool
    is_pinned: bool
    status: ModelStatus | None
    counts: Named
    """A row of `MODEL_TABLE`."""
    service: Named
    """A row of `SERVICE_TABLE`."""
    requests: RequestFigures


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures; see the module."""

    status: PoolSnapshot
    models: tuple[ModelFigures, ...]
    tenants: Mapping[str, Named]
    """Rows of `SERVICE_TABLE`."""
    devices: Mapping[InstanceId, Named]
    """Rows of `INSTANCE_TABLE`, of devices that were removed too."""
    deaths: Mapping[InstanceId, Row]
    """How often the device's executor broke, alone in its row."""
    work_s: float
    model_work_s: float
    refused: Mapping[ErrorCode, int]

    @property
    def node(self) -> NodeStatus | None:
        return self.status.node

    @property
    def present_devices(self) -> tuple[DeviceStatus, ...]:
        """The devices of the present node."""
        return () if self.node is None else self.node.devices


_NO_MODEL = MODEL_TABLE.row(ModelCounters())
_NO_SERVICE = SERVICE_TABLE.row(ServiceCounters())


def figures_of(totals: ServerTotals) -> Figures:
    """Sum and name everything. For 1,000 models this takes some ten milliseconds."""
    counts, services = totals.models.totals(), totals.services.totals()
    work_s, model_work_s = totals.work.totals().get(POOL, (0.0, 0.0))
    assert isinstance(work_s, float | int)
    assert isinstance(model_work_s, float | int)
    models = tuple(
        ModelFigures(
            name=shown.name,
            is_refused=bool(shown.refusal),
            is_pinned=shown.pinned,
            status=shown.status,
            counts=MODEL_TABLE.named(counts.get(ModelId(shown.name), _NO_MODEL)),
            service=SERVICE_TABLE.named(services.get(ModelId(shown.name), _NO_SERVICE)),
            requests=totals.requests.get(ModelId(shown.name), NO_REQUESTS),
        )
        for shown in totals.status.models
    )
    return Figures(
        status=totals.status,
        models=models,
        tenants=_named(SERVICE_TABLE, totals.tenants.totals()),
        devices=_named(INSTANCE_TABLE, totals.devices.totals()),
        deaths=totals.deaths.totals(),
        work_s=work_s,
        model_work_s=model_work_s,
        refused=totals.refused,
    )


def _named(table: Table, rows: Mapping[_Key, Row]) -> dict[_Key, Named]:
    return {key: table.named(row) for key, row in rows.items()}
