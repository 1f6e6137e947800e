"""What operators see of models: what the front knows, and the node's latest status."""

from dataclasses import dataclass

from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.messages.reports import ModelStatus
from tokenmux.scheduler.metrics.counter_table import Row
from tokenmux.server.front.node_side import NodeSide
from tokenmux.server.front.served_models import ServedModel, ServedModels


@dataclass(frozen=True, slots=True)
class ShownModel:
    """One model. `status` and `service` are None while the node has not reported on it."""

    name: str
    facts: ModelFacts | None
    """None for a model that could not be read."""
    pinned: bool
    refusal: str
    status: ModelStatus | None
    service: Row | None
    """The counters of `counters.SERVICE_TABLE`."""


class ShownModels:
    """The present state of models."""

    def __init__(self, models: ServedModels, node: NodeSide) -> None:
        self._models = models
        self._node = node

    def all(self) -> list[ShownModel]:
        """All models, by name."""
        status = self._node.status
        told = {} if status is None else {model.model: model for model in status.models}
        return [self._show(served, told.get(ModelId(served.name))) for served in self._models]

    def named(self, name: str) -> ShownModel:
        """The model called `name`. Raises NotFound."""
        return self.of(self._models.find(name))

    def of(self, served: ServedModel) -> ShownModel:
        return self._show(served, self.status_of(served))

    def status_of(self, served: ServedModel) -> ModelStatus | None:
        """The node's latest status of a model."""
        status = self._node.status
        models = () if status is None else status.models
        return next((model for model in models if model.model == served.name), None)

    def _show(self, served: ServedModel, status: ModelStatus | None) -> ShownModel:
        return ShownModel(
            name=served.name,
            facts=None if served.entry is None else served.facts,
            pinned=served.pinned,
            refusal="" if served.refusal is None else str(served.refusal),
            status=status,
            service=self._node.usage.models.get(ModelId(served.name)),
        )
