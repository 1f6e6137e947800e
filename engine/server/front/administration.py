"""What operators do with served models: load, unload, pin."""

from tokenmux.core.errors import BadCheckpoint, Ended, ProcessFailed
from tokenmux.core.phases import Residency
from tokenmux.messages.commands import Load, Pin, Unload
from tokenmux.server.front.changes import Changes
from tokenmux.server.front.node_side import NodeSide
from tokenmux.server.front.registration import Registration
from tokenmux.server.front.served_models import ServedModel, ServedModels
from tokenmux.server.front.shown_models import ShownModels


class Administration:
    """Operators' commands about models. All methods raise NotFound for an unknown model, Unavailable without
    a node."""

    def __init__(
        self,
        models: ServedModels,
        shown: ShownModels,
        registration: Registration,
        node: NodeSide,
        changes: Changes,
    ) -> None:
        self._models = models
        self._shown = shown
        self._registration = registration
        self._node = node
        self._changes = changes

    async def load(self, name: str, *, wait: bool = False) -> ServedModel:
        """Load a model onto a device; with `wait`, return only when it is there.

        Raises DoesNotFit if there is no room beside the pinned models. While it waits: BadCheckpoint if the
        weights cannot be read, Ended if another operator unloads it, NotFound if it is removed, ProcessFailed
        if the node breaks.
        """
        served = self._models.accepting(name)
        self._registration.check_fit(served)
        await self._node.command(Load(served.facts.id))
        version, n_restarts = self._changes.version, self._node.n_restarts
        while wait:
            served = self._models.accepting(name)
            status = self._shown.status_of(served)
            if status is not None and status.residency is Residency.RESIDENT:
                break
            if self._node.given_up is not None:
                raise self._node.given_up
            if not self._node.running or self._node.n_restarts != n_restarts:
                raise ProcessFailed(f"the node broke before {name} was resident: load it again")
            if status is not None and status.load_error:
                raise BadCheckpoint(f"{name} could not be loaded: {status.load_error}")
            if status is not None and status.unload_asked:
                raise Ended(
                    f"{name} was unloaded before it was resident: load it again if it is still wanted"
                )
            version = await self._changes.after(version)
        return served

    async def unload(self, name: str) -> ServedModel:
        """Take a model off all devices."""
        served = self._models.accepting(name)
        await self._node.command(Unload(served.facts.id))
        return served

    async def pin(self, name: str, *, pinned: bool) -> ServedModel:
        """Keep a model on a device, or let it leave again. Raises NotServable if the pinned models would
        leave no room."""
        served = self._models.accepting(name)
        await self._node.command(Pin(served.facts.id, pinned))
        served.pinned = pinned
        self._changes.notify()
        return served
