"""Use of the worker, collected from its reports once a second. Forgotten when the worker is replaced,
since the new worker's counters start at zero."""

from tokenmux.core.facts import ModelId
from tokenmux.messages.reports import ModelUse, Service, WorkerUse


class Usage:
    """The latest use of every model and tenant."""

    def __init__(self) -> None:
        self.models: dict[ModelId, ModelUse] = {}
        self.tenants: dict[str, Service] = {}
        self.work_s = 0.0
        self.model_work_s = 0.0
        self.n_models_used = 0

    def take(self, message: WorkerUse) -> None:
        self.models.update((use.model, use) for use in message.models)
        self.tenants.update(message.tenants)
        self.work_s = message.work_s
        self.model_work_s = message.model_work_s
        self.n_models_used = message.n_models_used

    def devices_saved(self, n_devices: int) -> float:
        """Devices saved compared with one device for each model while it has requests
        (`tokenmux.scheduler.metrics.counters.Metrics.models_with_work`); 0 before any work."""
        return self.model_work_s / self.work_s - n_devices if self.work_s else 0.0

    def devices_saved_dedicated(self, n_devices: int) -> int:
        """Devices saved compared with one device for each model requested within the last hour; 0 before
        any work."""
        return self.n_models_used - n_devices if self.work_s else 0
