"""What all nodes of this server have counted together: for figures that must not fall when one is replaced.

The status shows the present node's own counters (`tokenmux.server.front.pool_status`); these go on.
"""

from collections.abc import Collection

from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.core.request import DEFAULT_TENANT
from tokenmux.messages.reports import NodeStatus, NodeUse
from tokenmux.scheduler.metrics.counters import OTHERS, POOL
from tokenmux.server.front.lasting_rows import LastingRows


class NodeTotals:
    """Sums of the rows in a node's reports."""

    def __init__(self, tenants: Collection[str] = ()) -> None:
        """`tenants` are those that the operator has named: all others, whom clients name, are counted
        together."""
        named = {*tenants, DEFAULT_TENANT, POOL}
        self.models = LastingRows[ModelId]()
        """Rows of `counters.MODEL_TABLE`."""
        self.services = LastingRows[ModelId]()
        """Rows of `counters.SERVICE_TABLE`, by model."""
        self.tenants = LastingRows[str](lambda name: name if name in named else OTHERS)
        """Rows of `counters.SERVICE_TABLE`, by tenant."""
        self.devices = LastingRows[InstanceId]()
        """Rows of `counters.INSTANCE_TABLE`."""
        self.deaths = LastingRows[InstanceId]()
        """How often a device's executor broke and was replaced."""
        self.work = LastingRows[str]()
        """The pool's seconds with work, and the same once for each model that had some."""

    def take(self, report: NodeStatus | NodeUse) -> None:
        """A report of the present node."""
        match report:
            case NodeUse():
                self.services.take(report.models)
                self.tenants.take(report.tenants)
            case NodeStatus():
                self.models.take((model.model, model.counts) for model in report.models)
                self.devices.take((device.instance, device.counts) for device in report.devices)
                self.deaths.take((device.instance, (device.n_deaths,)) for device in report.devices)
                self.work.take(((POOL, (report.work_s, report.model_work_s)),))

    def node_broke(self) -> None:
        """The next node counts from zero."""
        for rows in (self.models, self.services, self.tenants, self.devices, self.deaths, self.work):
            rows.node_broke()
