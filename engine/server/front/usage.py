"""Usage of the worker, collected from what it reports once a second. Dropped when the worker is replaced,
since its counters start again."""

from tokenmux.core.facts import ModelId
from tokenmux.messages.reports import WorkerUse
from tokenmux.scheduler.metrics.counter_table import Row


class Usage:
    """The latest row of `counters.SERVICE_TABLE` of every model and tenant."""

    def __init__(self) -> None:
        self.models: dict[ModelId, Row] = {}
        self.tenants: dict[str, Row] = {}

    def take(self, message: WorkerUse) -> None:
        self.models.update(message.models)
        self.tenants.update(message.tenants)
