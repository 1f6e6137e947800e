"""Usage of the node, collected from what it reports once a second. Dropped when the node is replaced,
since its counters start again."""

from tokenmux.core.facts import ModelId
from tokenmux.messages.reports import NodeUse
from tokenmux.scheduler.metrics.counter_table import Row


class Usage:
    """The latest row of `counters.SERVICE_TABLE` of every model and tenant."""

    def __init__(self) -> None:
        self.models: dict[ModelId, Row] = {}
        self.tenants: dict[str, Row] = {}

    def take(self, message: NodeUse) -> None:
        self.models.update(message.models)
        self.tenants.update(message.tenants)
