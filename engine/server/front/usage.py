"""Usage of the worker, collected from what it reports once a second. Dropped when the worker is replaced,
since its counters start again."""

from tokenmux.core.facts import ModelId
from tokenmux.messages.reports import WorkerStatus, WorkerUse
from tokenmux.scheduler.metrics.counter_table import Row
from tokenmux.scheduler.metrics.counters import INSTANCE_TABLE


class Usage:
    """The latest row of `counters.SERVICE_TABLE` of every model and tenant."""

    def __init__(self) -> None:
        self.models: dict[ModelId, Row] = {}
        self.tenants: dict[str, Row] = {}

    def take(self, message: WorkerUse) -> None:
        self.models.update(message.models)
        self.tenants.update(message.tenants)


def devices_saved(status: WorkerStatus | None, n_devices: int) -> float:
    """Compared with one device for each model while it has requests
    (`tokenmux.scheduler.metrics.counters.Metrics.models_with_work`); 0 before any work."""
    work_s, model_work_s = _work(status)
    return model_work_s / work_s - n_devices if work_s else 0.0


def devices_saved_dedicated(status: WorkerStatus | None, n_devices: int) -> int:
    """Compared with one device for each model requested within the last hour; 0 before any work."""
    return status.n_models_used - n_devices if status is not None and _work(status)[0] else 0


def _work(status: WorkerStatus | None) -> tuple[float, float]:
    counts = {} if status is None else INSTANCE_TABLE.named(status.counts)
    return counts.get("work_s", 0.0), counts.get("model_work_s", 0.0)
